-- What clients do with jobs: create, cancel, retry. A part of ledger.lua, which names the keys.

-- Per job: id, version, priority, offset_us, start_within_us, finish_within_us, keep_us, metadata, input, message
-- (empty: the job came as another producer's message and needs no other), error (empty, or why it failed at once),
-- sha256 of its idempotency key (empty: none), sha256 of its body (with no key: the id is the client's own, which is then
-- as good as a key), webhook (JSON; empty: none), API key that it belongs to (empty: none), most jobs that the key may have
-- open (empty: any number), 1 where its client waits for its end (else empty), what it asks of the cache (see cache().wish),
-- not_before_us (0: none; a time that is over is as good as none).
-- Gives per job: state, created, position; the state is "queued", "cached" (it has ended already, with another's output),
-- "full" or "limited" (created: seconds after which to try again), "same" or "conflict" (created: the id of the job that
-- has this key or id, with the same body or another), or "gone" (a job that had this id was dropped); of one that came as
-- another producer's message also "other" (the job with its id has another input) or "revoked" (it has ended so). Last,
-- for how long the service keeps results for others (or nothing).
function operations.create()
  local limits = redis.call('HMGET', ABOUT, 'max_queue_size', 'max_queue_bytes', 'waiting_bytes', 'parked', 'version',
    'model', 'cache_for')
  local waiting_bytes = tonumber(limits[3] or 0)
  local waiting = redis.call('ZCARD', WAITING) + redis.call('ZCARD', DELAYED) + (limits[4] or 0)
  local reply, fair, parked = {}, turns(), {}
  for i = FIRST, #ARGV, 19 do
    local id, message, promise, owner = ARGV[i], ARGV[i + 9], ARGV[i + 11], ARGV[i + 14]
    local key, not_before = record(id), tonumber(ARGV[i + 18])
    local later = not_before > now
    local known = redis.call('HGET', key, 'created')
    local state, created = 'queued', known or (now + #reply)
    local earlier, body = (promise ~= '' and redis.call('GET', promised(promise)) or ''):match('^(%S+) (%S+)$')
    if earlier and earlier ~= id then
      state, created = body == ARGV[i + 12] and 'same' or 'conflict', earlier
      known = true
    end
    local own = promise == '' and ARGV[i + 12] or ''
    if own ~= '' and known then
      state, created = redis.call('HGET', key, 'body') == own and 'same' or 'conflict', id
    elseif own ~= '' and redis.call('EXISTS', seen(id)) == 1 then
      state, created, known = 'gone', id, true
    end
    if known and message == '' and redis.call('HGET', key, 'input') ~= ARGV[i + 8] then state = 'other' end
    local wish = not known and ARGV[i + 17] ~= ''
      and cache().wish(ARGV[i + 17], ARGV[i + 1], limits[5], limits[6], limits[7])
    local found = wish and not later and cache().find(wish)
    local again = not known and not found and message ~= ''
      and full(later and 0 or waiting, waiting_bytes + bytes_change, #ARGV[i + 8], limits)
    if again then
      state, created = 'full', again
    elseif not known and not found and limited(owner, 1, ARGV[i + 15]) then
      state, created = 'limited', soon()
    elseif not known then
      local start_within, finish_within = tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5])
      local start_by = start_within > 0 and math.max(now, not_before) + start_within or 0
      local finish_by = finish_within > 0 and math.max(now, not_before) + finish_within or 0
      local turn, offset = nil, ARGV[i + 3]
      if not found and not later then
        local inputs = wish and cache().has_equals(wish) and 0 or 1
        turn, offset = take_turn(fair, owner, ARGV[i + 2], inputs, offset)
      end
      local score = int((turn or later and not_before or created) + offset)
      created = int(created)
      redis.call('HSET', key, 'service', service, 'version', ARGV[i + 1], 'status', 'queued', 'priority', ARGV[i + 2],
        'attempt', '0', 'created', created, 'score', score, 'keep', ARGV[i + 6], 'input', ARGV[i + 8])
      if HAS_CELERYS_KEYS and (message == '' or KEEPS_ALL) then redis.call('HSET', key, 'celery', 1) end
      if ARGV[i + 7] ~= '{}' then redis.call('HSET', key, 'metadata', ARGV[i + 7]) end
      if promise ~= '' then
        redis.call('SET', promised(promise), id .. ' ' .. ARGV[i + 12])
        redis.call('HSET', key, 'idempotency', promise)
      end
      if ARGV[i + 13] ~= '' then redis.call('HSET', key, 'webhook', ARGV[i + 13]) end
      if own ~= '' then redis.call('HSET', key, 'body', own) end
      if not_before > 0 then redis.call('HSET', key, 'not_before', ARGV[i + 18]) end
      if ARGV[i + 16] ~= '' then redis.call('HSET', key, 'awaited', 1) end
      if turn then redis.call('HSET', key, 'turn', int(turn)) end
      if owner ~= '' then
        redis.call('HSET', key, 'owner', owner)
        gather('ZADD', owned(owner), created, id)
        open(owner, 1)
      end
      if start_by + finish_by > 0 then
        redis.call('HSET', key, 'start_within', start_within, 'finish_within', finish_within, 'start_by', int(start_by),
          'finish_by', int(finish_by))
      end
      bytes_change = bytes_change + #ARGV[i + 8]
      gather('ZADD', INDEX, created, id)
      local deadline = next_deadline(start_by, finish_by)
      if deadline > 0 then gather('ZADD', DEADLINES, deadline, id) end
      if wish then redis.call('HSET', key, 'cache', wish) end
      if found and not found[2] then
        cache().take_later(id, found[1])
        waiting = waiting + 1
      elseif found then
        state = 'cached'
        flush()
        cache().take_over(id, found[1], found[2])
      elseif later then
        gather('ZADD', SCHEDULED, ARGV[i + 18], id)
      else
        if not wish then gather('ZADD', WAITING, score, id) elseif not cache().join(id, wish, score) then parked[id] = wish end
        if message ~= '' and not parked[id] then gather('LPUSH', service, message) end
        waiting = waiting + 1
      end
      if message == '' and redis.call('EXISTS', revoked(id)) == 1 then
        state = 'revoked'
        flush()
        finish(id, 'cancelled')
      elseif ARGV[i + 10] ~= '' then
        flush()
        finish(id, 'failed', ARGV[i + 10])
      end
    end
    reply[#reply + 1] = state
    reply[#reply + 1] = type(created) == 'number' and int(created) or created
    reply[#reply + 1] = id
  end
  flush()
  for i = 3, #reply, 3 do
    local wish = parked[reply[i]]
    reply[i] = redis.call('ZRANK', WAITING, reply[i]) or (wish and cache().place(wish)) or -1
  end
  reply[#reply + 1] = limits[7] or ''
  return reply
end

-- id, 1 to leave it alone where it runs. Gives the status that it had, or nothing for an unknown id.
function operations.cancel()
  local id = ARGV[4]
  local job = redis.call('HMGET', record(id), 'status', 'worker')
  if job[1] == 'queued' or job[1] == 'running' and ARGV[5] ~= '1' then
    if job[1] == 'running' then stop_run(id, job[2]) end
    finish(id, 'cancelled')
  end
  return job[1]
end

-- 1 to end those that run too (else 0), ids. Celery's revoke: it holds for a message that no worker has adopted yet, too.
-- Gives the status that each had; empty for an unknown id.
function operations.revoke()
  local reply = {}
  for i = 5, #ARGV do
    local id = ARGV[i]
    local job = redis.call('HMGET', record(id), 'status', 'worker')
    if job[1] == 'queued' or job[1] == 'running' and ARGV[4] == '1' then
      if job[1] == 'running' then stop_run(id, job[2]) end
      finish(id, 'cancelled')
    elseif not job[1] and redis.call('EXISTS', seen(id)) == 0 then
      redis.call('SET', revoked(id), '1', 'PX', int(remember / 1000))
    end
    reply[#reply + 1] = job[1] or ''
  end
  return reply
end

-- id, most jobs that its API key may have open (empty: any number). Gives the status that it had (nothing for an unknown
-- id), or {"full" or "limited", seconds} where there is no room.
function operations.retry()
  local id = ARGV[4]
  local key = record(id)
  local job = redis.call('HMGET', key, 'status', 'score', 'created', 'finished', 'start_within', 'finish_within',
    'stopping', 'idempotency', 'events', 'watched', 'owner', 'priority', 'turn', 'cache', 'not_before')
  if not (TRANSITIONS[job[1]] and job[1] ~= 'running' and TRANSITIONS[job[1]].queued) then return job[1] end
  local not_before = tonumber(job[15] or 0)
  local later = not_before > now
  local from = later and not_before or now
  local again = has_no_room(redis.call('HSTRLEN', key, 'input'), later)
  if again then return {'full', again} end
  if job[11] and limited(job[11], 1, ARGV[5]) then return {'limited', soon()} end
  local start_by, finish_by = tonumber(job[5] or 0), tonumber(job[6] or 0)
  if start_by > 0 then start_by = from + start_by end
  if finish_by > 0 then finish_by = from + finish_by end
  local turn = not later and take_turn(turns(), job[11] or '', job[12], 1, 0)
  local score = (turn or from) + job[2] - (job[13] or math.max(job[3], not_before))
  if turn then redis.call('HSET', key, 'turn', turn) else redis.call('HDEL', key, 'turn') end
  if job[11] then
    open(job[11], 1)
    redis.call('ZREM', OWNED_EXPIRES, job[11] .. ':' .. id)
  end
  redis.call('HSET', key, 'status', 'queued', 'score', score, 'base', redis.call('HGET', key, 'attempt'), 'alone', 0,
    'start_by', start_by, 'finish_by', finish_by)
  redis.call('HDEL', key, 'worker', 'token', 'started', 'finished', 'expires', 'batch_size', 'error', 'timings', 'stopping',
    'progress', 'takes')
  redis.call('PERSIST', key)
  if job[9] then
    redis.call('PERSIST', said(id))
    redis.call('PERSIST', partial(id))
  end
  if job[10] then told[#told + 1] = id end
  redis.call('DEL', seen(id))
  if job[8] then redis.call('PERSIST', promised(job[8])) end
  if HAS_CELERYS_KEYS then redis.call('DEL', 'celery-task-meta-' .. id) end
  redis.call('ZREM', EXPIRES, id)
  local deadline = next_deadline(start_by, finish_by)
  if deadline > 0 then redis.call('ZADD', DEADLINES, deadline, id) end
  weigh(id, 1)
  if later then
    redis.call('ZADD', SCHEDULED, not_before, id)
  elseif job[7] and job[4] + RUN_ENDS_US > now then
    redis.call('ZADD', DELAYED, job[4] + RUN_ENDS_US, id)
  else
    enqueue(id, score, job[14])
  end
  return job[1]
end
