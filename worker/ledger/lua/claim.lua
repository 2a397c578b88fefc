-- claim: a pool process takes the most urgent jobs that wait, under its worker's lease.
--
-- Arguments: worker, token (of this claim, see lib/tokens), most (jobs), delay_us (for how long a claim that is not full
--   waits for further jobs), max_attempts, version, sizes (the author's preferred sizes, as "8,16"), model.
-- Answer: {"fenced"}: the worker has no lease; {"foreign", {field, message, …}}: messages of other producers, to be adopted;
--   {"hold", us}: not enough jobs wait yet; or {"batch", {id, attempt, input, first (of a chunk, else ""), …}, 1 where
--   enough jobs for a further claim wait, else 0} (no id: nothing waits).
-- A repeated call (the same token) gives the jobs that the first one took.
--@ include "lib/allow_when_full" "lib/bells" "lib/commit" "lib/deadlines" "lib/end_turns" "lib/token_numbers"
--@ include "lib/tokens"

-- A chunk that is claimed while another one runs is expected to run no longer than this.
local AHEAD_US = 250000
-- The service's Celery queue: kombu's lists for the priorities 0, 3, 6 and 9 (0 is the most urgent), joined by its separator.
local QUEUES = HAS_CELERYS_KEYS
  and {service, service .. '\6\0223', service .. '\6\0226', service .. '\6\0229'} or {service}

-- Messages of other producers wait for their adoption under the names of worker and process, so that no death loses one.
local function take_messages(worker, process, most)
  local foreign, start = {}, process .. ' '
  if redis.call('EXISTS', S .. 'taken:' .. worker) == 1 then  -- Redis was away when the process adopted these
    local taken = redis.call('HGETALL', S .. 'taken:' .. worker)
    for i = 1, #taken, 2 do
      local field, message = unpack(taken, i, i + 1)
      if field:sub(1, #start) == start then
        foreign[#foreign + 1] = field
        foreign[#foreign + 1] = message
      end
    end
    if #foreign > 0 then return foreign end
  end
  for _, queue in ipairs(QUEUES) do
    local messages = redis.call('RPOP', queue, most)
    for i, message in ipairs(messages or {}) do
      if message:sub(1, #OURS) ~= OURS then
        local field = start .. NOW .. ':' .. queue .. ':' .. i
        redis.call('HSET', S .. 'taken:' .. worker, field, message)
        foreign[#foreign + 1] = field
        foreign[#foreign + 1] = message
      end
    end
  end
  return foreign
end

-- For how many microseconds a claim that is not full still waits for further jobs; 0: it does not.
local function find_delay(ids, most, delay)
  if delay == 0 or #ids == 0 or #ids >= most then return 0 end
  local oldest = now
  for _, id in ipairs(ids) do
    local created, not_before = unpack(redis.call('HMGET', record(id), 'created', 'not_before'))
    oldest = math.min(oldest, math.max(tonumber(created or now), tonumber(not_before or 0)))
  end
  return math.max(0, oldest + delay - now)
end

-- The largest of the author's preferred sizes (Triton's preferred_batch_size) that this many waiting jobs fill; 0: none.
local function choose_size(waiting, sizes)
  local best = 0
  for size in sizes:gmatch('%d+') do
    size = tonumber(size)
    if size <= waiting and size > best then best = size end
  end
  return best
end

-- A job with this turn was the last to be claimed.
local function pass_turn(turn)
  if nothing_waits() then end_turns() else redis.call('HSET', ABOUT, 'turn', turn + 1) end
end

-- A job is claimed by a worker of this model: the jobs that equal it wait for its end.
local function lead_equals(id, wish, model)
  local key = split_wish(wish)
  flush()
  redis.call('ZREM', equals_key(key), id)
  if key:match('[^.]*$') == model then return redis.call('SET', leader_key(key), id) end
  -- The worker has another version, or other knobs, than those by which the job was found equal.
  redis.call('HDEL', record(id), 'cache')
  release_equals(key)
end

local function append(list, id, attempt, input, first)
  local n = #list
  list[n + 1], list[n + 2], list[n + 3], list[n + 4] = id, attempt, input, first
end

-- The jobs of these that may run together, {id, fields, id, fields, …}. Jobs that are past a deadline end here.
local function choose_jobs(ids)
  local jobs = {}
  for _, id in ipairs(ids) do
    local job = redis.call('HMGET', record(id), 'status', 'alone', 'start_by', 'finish_by', 'group', 'rows', 'turn', 'attempt',
      'input', 'first', 'watched', 'cache')
    local status, alone, start_by, finish_by = unpack(job)
    if not status then
      gather('ZREM', WAITING, id)  -- its record was deleted by hand
      gather('ZREM', CHUNKS, id)
    elseif not end_if_late(id, tonumber(start_by or 0), tonumber(finish_by or 0), status) then
      -- After a claim that died, each of its jobs is run alone, so that only the culprit is charged.
      if alone == '1' and #jobs > 0 then break end
      must_go(id, status, 'running')
      local n = #jobs
      jobs[n + 1], jobs[n + 2] = id, job
      if alone == '1' then break end
    end
  end
  return jobs
end

-- Gives the jobs as the answer has them, and the rows of a chunk (else 0).
local function take(ids, worker, token, max_attempts, version, model)
  local jobs, answer, last_turn, chunk_rows = choose_jobs(ids), {}, nil, 0
  local size, running = int(#jobs / 2), S .. 'running:' .. worker
  for i = 1, #jobs, 2 do
    local id, job = unpack(jobs, i, i + 1)
    local _, _, start_by, _, group, rows, turn, attempts, input, first, watched, wish = unpack(job)
    local key, attempt, most_attempts = record(id), int(attempts + 1), max_attempts
    input = input or 'null'
    if group then
      count(group, 'running', rows)
      report_batch(group)
      gather('ZREM', CHUNKS, id)
      chunk_rows = rows
      most_attempts = int(max_attempts + 1)  -- in the last attempt, the row that ended the others is passed over
    end
    bytes_change = bytes_change - #input
    gather('ZREM', WAITING, id)
    gather('HSET', running, id, token)
    if wish then lead_equals(id, wish, model) end
    redis.call('HSET', key, 'status', 'running', 'worker', worker, 'token', token, 'started', NOW, 'attempt', attempt,
      'max_attempts', most_attempts, 'version', version, 'batch_size', size)
    if start_by then redis.call('HSET', key, 'start_by', '0') end  -- it has started in time, however often it runs
    if watched then changed[#changed + 1] = id end
    last_turn = turn or last_turn
    append(answer, id, attempt, input, first or '')
  end
  flush()
  if last_turn then pass_turn(last_turn) end
  return answer, chunk_rows
end

-- The jobs that this token has claimed already, as the answer has them, and whether the process has claimed any.
local function find_claimed(worker, token)
  local running, process = redis.call('HGETALL', S .. 'running:' .. worker), process_of(token)
  local answer, is_at_work, tokens = {}, false, {}
  for i = 1, #running, 2 do
    local id, other = unpack(running, i, i + 1)
    if other == token then
      local attempt, input, first = unpack(redis.call('HMGET', record(id), 'attempt', 'input', 'first'))
      append(answer, id, attempt, input or 'null', first or '')
    end
    if not tokens[other] then
      tokens[other] = true
      is_at_work = is_at_work or process_of(other) == process
    end
  end
  return answer, is_at_work
end

-- 1 where a further claim, which feeder.py then makes ahead, would be full: this many jobs wait, or a chunk, which is a claim
-- by itself. 0 for a chunk that runs long: little would be gained, and jobs of other API keys would wait for it too.
local function next_is_full(most)
  local left = redis.call('ZCARD', WAITING)
  if left > 0 and redis.call('ZCARD', CHUNKS) > 0 then
    local id = redis.call('ZRANGE', WAITING, 0, 0)[1]
    if redis.call('ZSCORE', CHUNKS, id) then
      local rows, pace = redis.call('HGET', record(id), 'rows') or 0, redis.call('HGET', ABOUT, 'pace')
      return pace and rows * pace <= AHEAD_US and 1 or 0
    end
  end
  return left >= most and 1 or 0
end

-- Writes the run that the process begins, see S:busy:<worker>. is_ahead: it runs another claim at the moment.
local function note_busy(worker, token, is_ahead, has_jobs, rows, more)
  local busy, process = busy_key(worker), process_of(token)
  if not is_ahead and has_jobs then
    redis.call('HSET', busy, process, NOW .. ' ' .. int(rows) .. ' 0')
  elseif not is_ahead then
    redis.call('HDEL', busy, process)
  elseif has_jobs and more == 0 then  -- feeder.py will not look ahead again
    local run = (redis.call('HGET', busy, process) or ''):match('^%S+ %S+')
    if run then redis.call('HSET', busy, process, run .. ' ' .. number_of(token)) end
  end
end

local function claim(worker, token, most, delay, max_attempts, version, sizes, model)
  most, delay = tonumber(most), tonumber(delay)
  if not redis.call('ZSCORE', WORKERS, worker) then return {'fenced'} end
  local claimed, is_ahead = find_claimed(worker, token)
  if #claimed > 0 then return {'batch', claimed, next_is_full(most)} end
  local process, jobs, rows = process_of(token), {}, 0
  local foreign = take_messages(worker, process, most)
  if #foreign > 0 then return {'foreign', foreign} end
  while #jobs == 0 do
    local ids = redis.call('ZRANGE', WAITING, 0, most - 1)
    if #ids == 0 then break end
    local size = choose_size(#ids, sizes)
    local wait = size == 0 and find_delay(ids, most, delay) or 0
    if wait > 0 then
      if not is_ahead then redis.call('HDEL', busy_key(worker), process) end
      return {'hold', wait}
    end
    if size > 0 then ids = redis.call('ZRANGE', WAITING, 0, size - 1) end
    jobs, rows = take(ids, worker, token, max_attempts, version, model)
  end
  local more = next_is_full(most)
  note_busy(worker, token, is_ahead, #jobs > 0, rows, more)
  return {'batch', jobs, more}
end

return commit(claim(unpack(ARGV, FIRST)))
