-- retry_batch: runs again, in a batch that has ended, the rows that failed or were cancelled. Each chunk keeps its id and the
-- results of the rows that succeeded.
--
-- Arguments: group (the batch's id), request (an id of this request), offset_us (of the priority), message, most_open
--   (unfinished jobs that the batch's API key may have; empty: any number).
-- Answer: {state, detail}: "queued"; "full" or "limited" with the seconds after which to try again; "open": the batch has
--   not ended; "none": every row succeeded. Nothing for an unknown batch.
-- A repeated call has the same request id, and changes nothing.
--@ include "lib/allow_when_full" "lib/batches" "lib/commit" "base/keys_of_jobs" "base/numbers" "lib/room"
--@ include "lib/stop_run" "lib/turns"

-- The chunks that have rows to be run again, {id, rows, the time before which it does not run or nothing}, and the bytes of
-- their inputs.
local function find_unfinished(group, chunks)
  local unfinished, bytes = {}, 0
  for i = 0, chunks - 1 do
    local id = group .. '.' .. i
    local status, rows, bad, finished, stopping = unpack(redis.call('HMGET', record(id),
      'status', 'rows', 'bad', 'finished', 'stopping'))
    local again = status == 'succeeded' and tonumber(bad or 0) or tonumber(rows)
    if again > 0 then
      unfinished[#unfinished + 1] = {id, again, stopping and finished + RUN_ENDS_US}
      bytes = bytes + redis.call('HSTRLEN', record(id), 'input')
    end
  end
  return unfinished, bytes
end

-- The batch and its chunks are kept until it ends again.
local function reopen(group, request, chunks, unfinished, promise)
  local batch_key = batch_of(group)
  redis.call('HSET', batch_key, 'retry', request, 'begun', NOW, 'open', unfinished, 'failed', 0, 'cancelled', 0)
  redis.call('HDEL', batch_key, 'finished', 'expires', 'stopped')
  redis.call('PERSIST', batch_key)
  redis.call('PERSIST', seen('batch:' .. group))
  if promise then redis.call('PERSIST', promise_of(promise)) end
  for i = 0, chunks - 1 do redis.call('PERSIST', record(group .. '.' .. i)) end
end

local function queue_chunk(id, rows, not_before, score, turn)
  local key = record(id)
  local attempt = redis.call('HGET', key, 'attempt')
  redis.call('HDEL', key, 'worker', 'token', 'started', 'finished', 'expires', 'batch_size', 'error', 'timings', 'stopping',
    'turn', 'why', 'bad', 'uncharged')
  redis.call('HSET', key, 'status', 'queued', 'rows', rows, 'created', NOW, 'score', score, 'alone', 1, 'base', attempt,
    'retried', attempt)
  if turn then redis.call('HSET', key, 'turn', int(turn)) end
  weigh(id, 1)
  if not_before and not_before > now then  -- its cancelled run may not have ended yet
    redis.call('ZADD', DELAYED, not_before, id)
  else
    redis.call('ZADD', WAITING, score, id)
    redis.call('ZADD', CHUNKS, score, id)
  end
end

local function retry_batch(group, request, offset, message, most_open)
  local chunks, finished, failed, cancelled, owner, priority, promise, last_request = unpack(redis.call('HMGET',
    batch_of(group), 'chunks', 'finished', 'failed', 'cancelled', 'owner', 'priority', 'idempotency', 'retry'))
  if not chunks then return nil end
  if last_request == request then return {'queued', ''} end
  if not finished then return {'open', ''} end
  local rows = (failed or 0) + (cancelled or 0)
  if rows == 0 then return {'none', ''} end
  owner = owner or ''
  local unfinished, bytes = find_unfinished(group, chunks)
  local again = has_no_room(bytes)
  if again then return {'full', int(again)} end
  if limited(owner, rows, most_open) then return {'limited', int(next_end_s())} end
  reopen(group, request, chunks, #unfinished, promise)
  if owner ~= '' then add_open(owner, rows) end
  local fair = read_turns()
  for i, chunk in ipairs(unfinished) do
    local id, chunk_rows, not_before = unpack(chunk)
    local turn, stretched = take_turn(fair, owner, priority, chunk_rows, offset)
    queue_chunk(id, chunk_rows, not_before, int((turn or now + i) + stretched), turn)
  end
  redis.call('LPUSH', service, message)
  report_batch(group)
  return {'queued', ''}
end

return commit(retry_batch(unpack(ARGV, FIRST)))
