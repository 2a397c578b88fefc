-- retry_batch: runs again, in a batch that has ended, the rows that failed or were cancelled. Each chunk keeps its id and the
-- results of the rows that succeeded. The chunks are queued page by page, see lib/pages.
--
-- Arguments: group (the batch's id), request (an id of this request), offset_us (of the priority), most_open (unfinished jobs
--   that the batch's API key may have; empty: any number).
-- Answer: {state, detail}: "queued" with the answer of "advance"; "full" or "limited" with the seconds after which to try
--   again; "open": the batch has not ended; "none": every row succeeded. Nothing for an unknown batch.
-- A repeated call has the same request id, and changes nothing.
--@ include "lib/allow_when_full" "lib/commit" "base/keys_of_jobs" "base/numbers" "lib/pages"

-- The batch and its chunks are kept until it ends again.
local function reopen(group, request, chunks, promise)
  local batch_key = batch_of(group)
  redis.call('HSET', batch_key, 'retry', request, 'begun', NOW, 'open', chunks, 'failed', 0, 'cancelled', 0)
  redis.call('HDEL', batch_key, 'finished', 'expires', 'stopped')
  redis.call('PERSIST', batch_key)
  redis.call('PERSIST', seen('batch:' .. group))
  if promise then redis.call('PERSIST', promise_of(promise)) end
  for i = 0, chunks - 1 do redis.call('PERSIST', record(group .. '.' .. i)) end
end

local function retry_batch(group, request, offset, most_open)
  local chunks, finished, failed, cancelled, owner, promise, last_request = unpack(redis.call('HMGET',
    batch_of(group), 'chunks', 'finished', 'failed', 'cancelled', 'owner', 'idempotency', 'retry'))
  if not chunks then return nil end
  if last_request == request then return {'queued', 1} end
  if not finished then return {'open', ''} end
  local rows = (failed or 0) + (cancelled or 0)
  if rows == 0 then return {'none', ''} end
  owner = owner or ''
  local _, bytes = find_unfinished(group, 0, math.min(PAGE, chunks) - 1)
  local again = has_no_room(bytes)
  if again then return {'full', int(again)} end
  if limited(owner, rows, most_open) then return {'limited', int(next_end_s())} end
  reopen(group, request, chunks, promise)
  if owner ~= '' then add_open(owner, rows) end
  report_batch(group)
  redis.call('HSET', PAGES, group, 'retry 0 ' .. offset)
  return {'queued', advance(group)}
end

return commit(retry_batch(unpack(ARGV, FIRST)))
