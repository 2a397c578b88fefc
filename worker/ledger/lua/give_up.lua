-- give_up: ends a claim whose run came to nothing.
--
-- Arguments: worker, process (a pool process that is gone: everything that it had claimed is given up; empty: only this
--   claim is), token (of the claim whose run came to nothing, or empty), reason ("lost", "memory", "timed_out" or
--   "handed_back"), pause_us (before a further attempt; 0: a lost job is run again at once, a job that timed out is not).
-- Further claims of the process had not begun, so their jobs are handed back without a charge.
-- Answer: {id, why it has failed (empty: it runs again), …}.
-- A repeated call finds none of the jobs at this worker, and changes nothing.
--@ include "lib/allow_when_full" "lib/commit" "lib/run_again" "lib/token_numbers" "lib/tokens"

-- A claim that was made ahead is handed back: its process will not run it before it claims again.
local function clear_ahead(worker, token)
  local busy, process = busy_key(worker), process_of(token)
  local run, ahead = (redis.call('HGET', busy, process) or ''):match('^(%S+ %S+) (%S+)$')
  if run and tonumber(ahead) == number_of(token) then redis.call('HSET', busy, process, run .. ' 0') end
end

-- Messages that the process took and had not adopted wait again.
local function return_messages(worker, process)
  local taken_key, start = S .. 'taken:' .. worker, process .. ' '
  local taken = redis.call('HGETALL', taken_key)
  for i = 1, #taken, 2 do
    local field, message = unpack(taken, i, i + 1)
    if field:sub(1, #start) == start then
      redis.call('RPUSH', service, message)
      redis.call('HDEL', taken_key, field)
    end
  end
end

local function give_up(worker, process, token, reason, pause)
  local running, answer = redis.call('HGETALL', S .. 'running:' .. worker), {}
  local is_gone, start = process ~= '', process .. '.'
  if is_gone then
    redis.call('HDEL', busy_key(worker), process)
    return_messages(worker, process)
  elseif reason == 'handed_back' then
    clear_ahead(worker, token)
  end
  for i = 1, #running, 2 do
    local id, holder = unpack(running, i, i + 1)
    if holder == token or (is_gone and holder:sub(1, #start) == start) then
      answer[#answer + 1] = id
      answer[#answer + 1] = run_again(id, holder == token and reason or 'handed_back', tonumber(pause)) or ''
    end
  end
  return answer
end

return commit(give_up(unpack(ARGV, FIRST)))
