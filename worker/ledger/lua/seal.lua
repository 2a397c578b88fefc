-- seal: accepts a batch whose chunks are all stored.
--
-- Arguments: group (the batch's id), version, priority, offset_us (of the priority), keep_us, metadata, rows, chunks, bytes,
--   message, promise (sha256 of its Idempotency-Key; empty: none), body (sha256 of the request), webhook (JSON; empty: none),
--   owner (the API key's id; empty: none), most_open (unfinished jobs that the key may have; empty: any number).
-- Answer: {state, detail} as create's; or {"gone", ""} where a chunk is no longer there: the batch was too long on its way.
-- A repeated call finds the batch's record and changes nothing.
--@ include "lib/allow_when_full" "lib/batches" "lib/commit" "base/keys_of_jobs" "base/numbers" "lib/room" "lib/turns"

-- Gives the answer for a batch that is not accepted now, or nothing.
local function find_obstacle(group, rows, chunks, bytes, promise, body, owner, most_open)
  if redis.call('EXISTS', batch_of(group)) == 1 then return {'queued', ''} end
  if promise ~= '' then
    local earlier, earlier_body = (redis.call('GET', promise_of(promise)) or ''):match('^(%S+) (%S+)$')
    if earlier then return {earlier_body == body and 'same' or 'conflict', earlier} end
  end
  local again = has_no_room(bytes)
  if again then return {'full', int(again)} end
  if limited(owner, rows, most_open) then return {'limited', int(next_end_s())} end
  for i = 0, chunks - 1 do
    if redis.call('EXISTS', record(group .. '.' .. i)) == 0 then return {'gone', ''} end
  end
end

local function seal(group, version, priority, offset, keep, metadata, rows, chunks, bytes, message, promise, body, webhook,
    owner, most_open)
  local obstacle = find_obstacle(group, rows, tonumber(chunks), tonumber(bytes), promise, body, owner, most_open)
  if obstacle then return obstacle end
  local batch_key = batch_of(group)
  redis.call('HSET', batch_key, 'service', service, 'version', version, 'priority', priority, 'keep', keep,
    'metadata', metadata, 'rows', rows, 'chunks', chunks, 'open', chunks, 'created', now)
  if webhook ~= '' then redis.call('HSET', batch_key, 'webhook', webhook) end
  redis.call('SET', seen('batch:' .. group), owner ~= '' and owner or 1)
  if owner ~= '' then
    redis.call('HSET', batch_key, 'owner', owner)
    add_open(owner, rows)
  end
  if promise ~= '' then
    redis.call('SET', promise_of(promise), group .. ' ' .. body)
    redis.call('HSET', batch_key, 'idempotency', promise)
  end
  local fair = read_turns()
  for i = 0, chunks - 1 do
    local id = group .. '.' .. i
    local key = record(id)
    local turn, stretched = take_turn(fair, owner, priority, redis.call('HGET', key, 'rows'), offset)
    local score = int((turn or now + i) + stretched)
    redis.call('HSET', key, 'service', service, 'version', version, 'status', 'queued', 'priority', priority,
      'attempt', 0, 'created', NOW, 'score', score, 'keep', keep, 'alone', 1)
    if turn then redis.call('HSET', key, 'turn', int(turn)) end
    if owner ~= '' then redis.call('HSET', key, 'owner', owner) end
    redis.call('PERSIST', key)
    redis.call('ZADD', WAITING, score, id)
    redis.call('ZADD', CHUNKS, score, id)
    weigh(id, 1)
  end
  redis.call('LPUSH', service, message)
  return {'queued', ''}
end

return commit(seal(unpack(ARGV, FIRST)))
