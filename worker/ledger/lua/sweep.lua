-- sweep: recovers the jobs of dead workers, ends jobs that are late, queues jobs that may run now, and forgets jobs whose
-- record was dropped. Each worker calls it twice a second, and each API once, since a service may have no worker.
--
-- Arguments: lease_us.
-- Answer: the ids of the jobs of dead workers.
-- A repeated call goes on with the jobs that are left.
--@ include "lib/allow_when_full" "lib/commit" "lib/deadlines" "lib/end_turns" "lib/equal_jobs/results"
--@ include "lib/forget_worker" "lib/pages"

-- Two searches for dead workers are at least this far apart, however many workers there are.
local SWEEP_US = 400000
-- Entries that one call handles of each kind. It forgets several pages of expired jobs: with one worker and one API three
-- times a second, which is more than the jobs that end in that time.
local MOST, FORGET_PAGES = 1000, 4
-- Batches whose retry waits for room, at most, that one call looks at.
local MOST_BATCHES = 10

local function due_of(key, limit) return redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, limit) end

-- The clock went back: jobs that were to wait until a time of the earlier clock would wait for ever.
local function mend_times()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, now + MAX_PAUSE_US, '+inf')) do
    redis.call('ZADD', DELAYED, now, id)
  end
  end_turns()
  local ids = redis.call('ZRANGEBYSCORE', WAITING, now, '+inf')
  for i, id in ipairs(ids) do
    local old_score, created, turn = unpack(redis.call('HMGET', record(id), 'score', 'created', 'turn'))
    if old_score and tonumber(created) > now then
      local score = now + old_score - created - (#ids - i)  -- in the order in which they came
      redis.call('HSET', record(id), 'score', score)
      if turn then redis.call('HSET', record(id), 'turn', now + turn - created) end
      redis.call('ZADD', WAITING, score, id)
      redis.call('ZADD', CHUNKS, 'XX', score, id)
    end
  end
end

-- Redis may have been away, or its clock has jumped, so that living workers could not renew their leases either. The time
-- since the last sweep does not count: each lease has left what it had then, and at least half; after a jump back, which
-- leaves no measure, the whole.
local function grant_time(last, lease)
  local leases = redis.call('ZRANGE', WORKERS, 0, -1, 'WITHSCORES')
  for i = 1, #leases, 2 do
    local worker, expires = unpack(leases, i, i + 1)
    local left = now < last and lease or math.min(lease, math.max(expires - last, lease / 2))
    redis.call('ZADD', WORKERS, now + left, worker)
  end
  if now < last then mend_times() end
end

-- Queues the jobs of workers whose lease has expired; gives their ids.
local function recover(lease)
  if redis.call('ZCARD', WORKERS) == 0 then return {} end
  local last, lost = tonumber(redis.call('GET', S .. 'swept') or 0), {}
  if now >= last and now < last + SWEEP_US then return lost end
  redis.call('SET', S .. 'swept', int(now))
  if now < last or now > last + lease / 2 then
    grant_time(last, lease)
    return lost
  end
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', now)) do  -- pillar: sweep
    for _, id in ipairs(forget_worker(worker, 'lost')) do lost[#lost + 1] = id end
  end
  return lost
end

-- Ends the jobs that are past a deadline.
local function end_late_jobs()
  for _, id in ipairs(due_of(DEADLINES, MOST)) do
    local start_by, finish_by, status = unpack(redis.call('HMGET', record(id), 'start_by', 'finish_by', 'status'))
    redis.call('ZREM', DEADLINES, id)
    if status then
      start_by, finish_by = tonumber(start_by or 0), tonumber(finish_by or 0)
      if not end_if_late(id, start_by, finish_by, status) and finish_by > now then
        redis.call('ZADD', DEADLINES, finish_by, id)
      end
    end
  end
end

-- A job with "takes" ends with that job's output; false where the output is gone, so that the job is to run.
local function take_now(id, from)
  local output = copied < MAX_COPIED and redis.call('HGET', record(from), 'output')
  if output then
    take_over(id, from, output)
  elseif has_output(from) then
    take_later(id, from)
  else
    redis.call('HDEL', record(id), 'takes')
    return false
  end
  return true
end

-- Queues the jobs whose pause is over.
local function end_pauses()
  for _, id in ipairs(due_of(DELAYED, MOST)) do
    redis.call('ZREM', DELAYED, id)
    local score, wish, group, takes = unpack(redis.call('HMGET', record(id), 'score', 'cache', 'group', 'takes'))
    if score and not (takes and take_now(id, takes)) then enqueue(id, score, wish, group) end
  end
end

-- A job whose not_before has come takes its place, as a job that was created in that moment.
local function queue_scheduled(id, fair)
  local key = record(id)
  local status, score, not_before, wish, owner, priority = unpack(redis.call('HMGET', key,
    'status', 'score', 'not_before', 'cache', 'owner', 'priority'))
  if status ~= 'queued' then return end
  if wish then
    local equal, output = find_result(wish)
    if output then return take_over(id, equal, output) end
    if equal then return take_later(id, equal) end
  end
  local inputs = wish and has_equals(wish) and 0 or 1
  local turn, offset = take_turn(fair, owner or '', priority, inputs, score - not_before)
  if turn then
    score = int(turn + offset)
    redis.call('HSET', key, 'score', score, 'turn', int(turn))
  end
  if wish then return enqueue(id, score, wish) end
  gather('ZADD', WAITING, score, id)
  gather('LPUSH', service, bell(id))
end

local function end_schedules()
  local ids = due_of(SCHEDULED, MOST)
  if #ids == 0 then return end
  local fair = read_turns()
  for _, id in ipairs(ids) do
    gather('ZREM', SCHEDULED, id)
    queue_scheduled(id, fair)
  end
end

-- Takes jobs whose record was dropped out of the lists of all jobs.
local function forget_expired()
  for _ = 1, FORGET_PAGES do
    local ids = due_of(EXPIRES, MOST)
    if #ids == 0 then break end
    redis.call('ZREM', EXPIRES, unpack(ids))
    redis.call('ZREM', S .. 'index', unpack(ids))
  end
  for _, member in ipairs(due_of(OWNED_EXPIRES, 2 * MOST)) do
    local owner, id = member:match('^([^:]*):(.*)$')
    redis.call('ZREM', OWNED_EXPIRES, member)
    redis.call('ZREM', S .. 'owned:' .. owner, id)
  end
end

-- Turns that an API key has used, and that are over, count no longer.
local function forget_turns()
  local last = tonumber(redis.call('HGET', ABOUT, 'turn'))
  if not last then return end
  if nothing_waits() then return end_turns() end
  local lines = redis.call('HGETALL', TURNS)
  for i = 1, #lines, 2 do
    local line, turn = unpack(lines, i, i + 1)
    local owner = line:match('^(%S*) ')
    if tonumber(turn) <= last and not redis.call('HGET', OPEN, owner) then redis.call('HDEL', TURNS, line) end
  end
end

-- Goes on with an operation on a batch whose API has ended in the midst, or that waits for room.
local function advance_batches()
  for i, group in ipairs(redis.call('HKEYS', PAGES)) do
    if i > MOST_BATCHES or advance(group) ~= 2 then break end
  end
end

local lost = recover(tonumber(ARGV[FIRST]))
end_late_jobs()
end_pauses()
end_schedules()
flush()
forget_expired()
forget_turns()
advance_batches()
return commit(lost)
