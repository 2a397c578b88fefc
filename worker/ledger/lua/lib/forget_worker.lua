-- Takes a worker out of the ledger.
--@ include "base/keys_of_workers" "lib/run_again" "lib/tokens"

-- The jobs that the worker ran are queued again for this reason ("lost" or "handed_back"); gives their ids. Where a process has
-- two claims, the claim with the higher number was made ahead: it had not begun, so its jobs are not charged.
local function forget_worker(worker, reason)
  local running, jobs, first = redis.call('HGETALL', S .. 'running:' .. worker), {}, {}
  for i = 2, #running, 2 do
    local process, number = running[i]:match('^(.*)%.(%d+)$')
    if process then first[process] = math.min(first[process] or math.huge, tonumber(number)) end
  end
  for i = 1, #running, 2 do
    local id, token = unpack(running, i, i + 1)
    local process, number = token:match('^(.*)%.(%d+)$')
    local is_ahead = process and tonumber(number) > first[process]
    jobs[#jobs + 1] = id
    run_again(id, is_ahead and 'handed_back' or reason, 0)
  end
  for _, message in ipairs(redis.call('HVALS', S .. 'taken:' .. worker)) do
    redis.call('RPUSH', service, message)
  end
  redis.call('DEL', S .. 'running:' .. worker, S .. 'taken:' .. worker, S .. 'cancels:' .. worker, busy_key(worker))
  redis.call('ZREM', WORKERS, worker)
  redis.call('HDEL', INFO, worker)
  return jobs
end
