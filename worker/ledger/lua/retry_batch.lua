-- What clients do with batches, whose chunks are jobs. A part of ledger.lua, which names the keys.

-- chunk's id, group, first, rows, lines, ttl_us: one chunk of a batch that is still on its way
function operations.stage()
  local key = record(ARGV[4])
  redis.call('HSET', key, 'group', ARGV[5], 'first', ARGV[6], 'rows', ARGV[7], 'input', ARGV[8])
  redis.call('PEXPIRE', key, math.floor(ARGV[9] / 1000))
end

-- group, chunks: a batch that will not come is forgotten
function operations.discard()
  if redis.call('EXISTS', batch_of(ARGV[4])) == 1 then return end
  for i = 0, ARGV[5] - 1 do redis.call('DEL', record(ARGV[4] .. '.' .. i)) end
end

-- group, version, priority, offset_us, keep_us, metadata, rows, chunks, bytes, message, sha256 of the idempotency key,
-- of the body, webhook (JSON; empty: none), API key, most jobs that the key may have open: all chunks are there, so the
-- batch is accepted. Gives {state, detail} as create does, or {"gone"} where a chunk was too long on its way.
function operations.seal()
  local group, chunks, promise, owner = ARGV[4], tonumber(ARGV[11]), ARGV[14], ARGV[17]
  local key = batch_of(group)
  if redis.call('EXISTS', key) == 1 then return {'queued', ''} end
  if promise ~= '' then
    local earlier, body = (redis.call('GET', promised(promise)) or ''):match('^(%S+) (%S+)$')
    if earlier then return {body == ARGV[15] and 'same' or 'conflict', earlier} end
  end
  local again = has_no_room(tonumber(ARGV[12]))
  if again then return {'full', int(again)} end
  if limited(owner, ARGV[10], ARGV[18]) then return {'limited', int(soon())} end
  for i = 0, chunks - 1 do
    if redis.call('EXISTS', record(group .. '.' .. i)) == 0 then return {'gone', ''} end
  end
  redis.call('HSET', key, 'service', service, 'version', ARGV[5], 'priority', ARGV[6], 'keep', ARGV[8], 'metadata', ARGV[9],
    'rows', ARGV[10], 'chunks', chunks, 'open', chunks, 'created', now)
  if ARGV[16] ~= '' then redis.call('HSET', key, 'webhook', ARGV[16]) end
  redis.call('SET', seen('batch:' .. group), owner ~= '' and owner or 1)
  if owner ~= '' then
    redis.call('HSET', key, 'owner', owner)
    open(owner, ARGV[10])
  end
  if promise ~= '' then
    redis.call('SET', promised(promise), group .. ' ' .. ARGV[15])
    redis.call('HSET', key, 'idempotency', promise)
  end
  local fair = turns()
  for i = 0, chunks - 1 do
    local id = group .. '.' .. i
    local turn, offset = take_turn(fair, owner, ARGV[6], redis.call('HGET', record(id), 'rows'), ARGV[7])
    local score = int((turn or now + i) + offset)
    redis.call('HSET', record(id), 'service', service, 'version', ARGV[5], 'status', 'queued', 'priority', ARGV[6],
      'attempt', 0, 'created', NOW, 'score', score, 'keep', ARGV[8], 'alone', 1)
    if turn then redis.call('HSET', record(id), 'turn', int(turn)) end
    if owner ~= '' then redis.call('HSET', record(id), 'owner', owner) end
    redis.call('PERSIST', record(id))
    redis.call('ZADD', WAITING, score, id)
    redis.call('ZADD', CHUNKS, score, id)
    weigh(id, 1)
  end
  redis.call('LPUSH', service, ARGV[13])
  return {'queued', ''}
end

-- group. Cancels what has not ended; gives 1, 0 where the batch had ended, or nothing for an unknown one.
function operations.cancel_batch()
  local batch = redis.call('HMGET', batch_of(ARGV[4]), 'chunks', 'finished')
  if not batch[1] then return nil end
  if batch[2] then return 0 end
  redis.call('HSET', batch_of(ARGV[4]), 'stopped', 1)
  for i = 0, batch[1] - 1 do
    local id = ARGV[4] .. '.' .. i
    local job = redis.call('HMGET', record(id), 'status', 'worker')
    if job[1] == 'running' then stop_run(id, job[2]) end
    if job[1] == 'queued' or job[1] == 'running' then finish(id, 'cancelled') end
  end
  return 1
end

-- group, token of this request, offset_us, message, most jobs that its API key may have open (empty: any number). Runs again,
-- in a batch that has ended, what failed or was cancelled; each chunk keeps its id and what has succeeded. Gives {state,
-- detail}: "queued" (also when it is said again), "full" or "limited" (seconds after which to try again), "open" (it has not
-- ended), "none" (every row succeeded), or nothing for an unknown batch.
function operations.retry_batch()
  local group, key = ARGV[4], batch_of(ARGV[4])
  local batch = redis.call('HMGET', key, 'chunks', 'finished', 'failed', 'cancelled', 'owner', 'priority', 'idempotency', 'retry')
  if not batch[1] then return nil end
  if batch[8] == ARGV[5] then return {'queued', ''} end
  if not batch[2] then return {'open', ''} end
  local rows, owner = (batch[3] or 0) + (batch[4] or 0), batch[5] or ''
  if rows == 0 then return {'none', ''} end
  local chunks, bytes = {}, 0
  for i = 0, batch[1] - 1 do
    local id = group .. '.' .. i
    local job = redis.call('HMGET', record(id), 'status', 'rows', 'bad', 'finished', 'stopping')
    local again = job[1] == 'succeeded' and tonumber(job[3] or 0) or tonumber(job[2])
    if again > 0 then
      chunks[#chunks + 1] = {id, again, job[5] and job[4] + RUN_ENDS_US}
      bytes = bytes + redis.call('HSTRLEN', record(id), 'input')
    end
  end
  local later = has_no_room(bytes)
  if later then return {'full', int(later)} end
  if limited(owner, rows, ARGV[8]) then return {'limited', int(soon())} end
  redis.call('HSET', key, 'retry', ARGV[5], 'begun', NOW, 'open', #chunks, 'failed', 0, 'cancelled', 0)
  redis.call('HDEL', key, 'finished', 'expires', 'stopped')
  redis.call('PERSIST', key)
  redis.call('PERSIST', seen('batch:' .. group))
  if batch[7] then redis.call('PERSIST', promised(batch[7])) end
  for i = 0, batch[1] - 1 do redis.call('PERSIST', record(group .. '.' .. i)) end
  if owner ~= '' then open(owner, rows) end
  local fair = turns()
  for i, chunk in ipairs(chunks) do
    local id, again, not_before = unpack(chunk)
    local turn, offset = take_turn(fair, owner, batch[6], again, ARGV[6])
    local score = int((turn or now + i) + offset)
    redis.call('HDEL', record(id), 'worker', 'token', 'started', 'finished', 'expires', 'batch_size', 'error', 'timings',
      'stopping', 'turn', 'why', 'bad')
    redis.call('HSET', record(id), 'status', 'queued', 'rows', again, 'created', NOW, 'score', score, 'alone', 1)
    local attempt = redis.call('HGET', record(id), 'attempt')
    redis.call('HSET', record(id), 'base', attempt, 'retried', attempt)
    if turn then redis.call('HSET', record(id), 'turn', int(turn)) end
    weigh(id, 1)
    if not_before and not_before > now then  -- its cancelled run may not have ended yet
      redis.call('ZADD', DELAYED, not_before, id)
    else
      redis.call('ZADD', WAITING, score, id)
      redis.call('ZADD', CHUNKS, score, id)
    end
  end
  redis.call('LPUSH', service, ARGV[7])
  tell_of(group)
  return {'queued', ''}
end

-- group. Gives its record, or nothing for an unknown batch; from now on, its changes are told on jobs:told.
function operations.hear_batch()
  local key = batch_of(ARGV[4])
  local batch = redis.call('HMGET', key, 'created', 'watched')
  if not batch[1] then return nil end
  if not batch[2] then redis.call('HSET', key, 'watched', 1) end
  return redis.call('HGETALL', key)
end
