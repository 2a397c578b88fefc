-- Workers: their leases, and what becomes of the jobs of one that is lost. A part of ledger.lua, which names the keys.

-- Of two batches of one process, that with the higher number was claimed ahead: it had not begun, so it is no suspect.
local function forget(worker, reason)
  local tokens, mine, first = redis.call('HGETALL', S .. 'running:' .. worker), {}, {}
  for i = 2, #tokens, 2 do
    local process, number = tokens[i]:match('^(.*)%.(%d+)$')
    if process then first[process] = math.min(first[process] or math.huge, tonumber(number)) end
  end
  for i = 1, #tokens, 2 do
    local process, number = tokens[i + 1]:match('^(.*)%.(%d+)$')
    local ahead = process and tonumber(number) > first[process]
    mine[#mine + 1] = tokens[i]
    run_again(tokens[i], ahead and 'handed_back' or reason, 0)
  end
  for _, message in ipairs(redis.call('HVALS', S .. 'taken:' .. worker)) do
    redis.call('RPUSH', service, message)
  end
  redis.call('DEL', S .. 'running:' .. worker, S .. 'taken:' .. worker, S .. 'cancels:' .. worker, busy(worker))
  redis.call('ZREM', WORKERS, worker)
  redis.call('HDEL', INFO, worker)
  return mine
end

-- worker, lease_us, info: a new worker of this service
function operations.join()
  redis.call('ZADD', WORKERS, now + ARGV[5], ARGV[4])
  redis.call('HSET', INFO, ARGV[4], ARGV[6])
end

-- version, knobs (JSON), max_queue_size, max_queue_bytes, cache_for_us, model: what a worker knows of its service as soon
-- as it is loaded
function operations.tell()
  if redis.call('HGET', ABOUT, 'model') ~= ARGV[9] then redis.call('HDEL', ABOUT, 'batch_time', 'row_time') end
  redis.call('HSET', ABOUT, 'version', ARGV[4], 'knobs', ARGV[5], 'max_queue_size', ARGV[6],
    'max_queue_bytes', ARGV[7], 'cache_for', ARGV[8], 'model', ARGV[9])
  redis.call('HDEL', ABOUT, 'failure')
end

-- worker, lease_us, info. Gives {1 or 0: whether the lease was still held, {"<token> <job>" of a cancelled run, ...}}
function operations.renew()
  if not redis.call('ZSCORE', WORKERS, ARGV[4]) then return {0, {}} end
  redis.call('ZADD', WORKERS, now + ARGV[5], ARGV[4])
  redis.call('HSET', INFO, ARGV[4], ARGV[6])
  local cancels = redis.call('SMEMBERS', S .. 'cancels:' .. ARGV[4])
  redis.call('DEL', S .. 'cancels:' .. ARGV[4])
  return {1, cancels}
end

-- worker, lease_us: renewed by a pool process whose worker's main process may be stopped. Gives 1, or 0 where the lease
-- has lapsed and what runs is others' now.
function operations.extend()
  if not redis.call('ZSCORE', WORKERS, ARGV[4]) then return 0 end
  redis.call('ZADD', WORKERS, 'GT', now + ARGV[5], ARGV[4])
  return 1
end

-- failure (JSON): why the plugin cannot be loaded
function operations.fail()
  redis.call('HSET', ABOUT, 'failure', ARGV[4])
end

-- worker: it stops; what it has not finished goes back at once, uncharged
function operations.leave()
  return forget(ARGV[4], 'handed_back')
end

-- The clock went back: what was told to wait until the time that it had shown would wait for ever.
local function mend_times()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, now + MAX_PAUSE_US, '+inf')) do
    redis.call('ZADD', DELAYED, now, id)
  end
  end_turns()
  local ids = redis.call('ZRANGEBYSCORE', WAITING, now, '+inf')
  for i, id in ipairs(ids) do
    local job = redis.call('HMGET', record(id), 'score', 'created', 'turn')
    if job[1] and tonumber(job[2]) > now then
      local score = now + job[1] - job[2] - (#ids - i)  -- in the order in which they came
      redis.call('HSET', record(id), 'score', score)
      if job[3] then redis.call('HSET', record(id), 'turn', now + job[3] - job[2]) end
      redis.call('ZADD', WAITING, score, id)
      redis.call('ZADD', CHUNKS, 'XX', score, id)
    end
  end
end

-- Jobs of workers whose lease has lapsed run again. Not after a time without a sweep, in which Redis may have been away,
-- and not after a jump of its clock: then the living could not renew either. That time does not count: what was left of
-- each lease at the last sweep is left again, and half of one at least; after a jump back, nobody knows what was left.
local function recover(lease)
  if redis.call('ZCARD', WORKERS) == 0 then return {} end
  local last, lost = tonumber(redis.call('GET', S .. 'swept') or 0), {}
  if now >= last and now < last + SWEEP_US then return lost end
  redis.call('SET', S .. 'swept', int(now))
  if now < last or now > last + lease / 2 then
    local leases = redis.call('ZRANGE', WORKERS, 0, -1, 'WITHSCORES')
    for i = 1, #leases, 2 do
      local left = now < last and lease or math.min(lease, math.max(leases[i + 1] - last, lease / 2))
      redis.call('ZADD', WORKERS, now + left, leases[i])
    end
    if now < last then mend_times() end
    return lost
  end
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', now)) do
    for _, id in ipairs(forget(worker, 'lost')) do lost[#lost + 1] = id end
  end
  return lost
end

-- A job whose not_before has come takes its place, as one that was created in that moment.
local function come_due(id, fair)
  local key = record(id)
  local job = redis.call('HMGET', key, 'status', 'score', 'not_before', 'cache', 'owner', 'priority')
  if job[1] ~= 'queued' then return end
  local wish = job[4]
  local found = wish and cache().find(wish)
  if found then return cache().take_over(id, found[1], found[2]) end
  local inputs = wish and cache().has_equals(wish) and 0 or 1
  local turn, offset = take_turn(fair, job[5] or '', job[6], inputs, job[2] - job[3])
  local score = job[2]
  if turn then
    score = int(turn + offset)
    redis.call('HSET', key, 'score', score, 'turn', int(turn))
  end
  if wish then return enqueue(id, score, wish) end
  gather('ZADD', WAITING, score, id)
  gather('LPUSH', service, bell(id))
end

-- A sweep forgets so many thousand expired jobs: with one worker and one API, three times a second, more than end in it.
local FORGET_PAGES = 4

-- lease_us. Run twice a second by each worker and once by each API, which keeps the clock of services that have no worker:
-- recovers what dead workers left, ends what is late, queues what was delayed or is due now, forgets what has expired. Gives the jobs
-- of dead workers.
function operations.sweep()
  local lost = recover(tonumber(ARGV[4]))
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', now, 'LIMIT', 0, 1000)) do
    local job = redis.call('HMGET', record(id), 'start_by', 'finish_by', 'status')
    redis.call('ZREM', DEADLINES, id)
    if job[3] then
      local start_by, finish_by = tonumber(job[1] or 0), tonumber(job[2] or 0)
      if not end_if_late(id, start_by, finish_by, job[3]) and finish_by > now then
        redis.call('ZADD', DEADLINES, finish_by, id)
      end
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, 1000)) do
    redis.call('ZREM', DELAYED, id)
    local job = redis.call('HMGET', record(id), 'score', 'cache', 'group', 'takes')
    if job[1] and not (job[4] and cache().take_now(id, job[4])) then enqueue(id, job[1], job[2], job[3]) end
  end
  local due = redis.call('ZRANGEBYSCORE', SCHEDULED, '-inf', now, 'LIMIT', 0, 1000)
  local fair = #due > 0 and turns()
  for _, id in ipairs(due) do
    gather('ZREM', SCHEDULED, id)
    come_due(id, fair)
  end
  flush()
  for _ = 1, FORGET_PAGES do
    local ids = redis.call('ZRANGEBYSCORE', EXPIRES, '-inf', now, 'LIMIT', 0, 1000)
    if #ids == 0 then break end
    redis.call('ZREM', EXPIRES, unpack(ids))
    redis.call('ZREM', INDEX, unpack(ids))
  end
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', OWNED_EXPIRES, '-inf', now, 'LIMIT', 0, 2000)) do
    local owner, id = member:match('^([^:]*):(.*)$')
    redis.call('ZREM', OWNED_EXPIRES, member)
    redis.call('ZREM', owned(owner), id)
  end
  forget_turns()
  return lost
end
