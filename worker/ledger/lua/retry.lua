-- retry: queues a job again that has failed, was cancelled or has expired.
--
-- Arguments: id, most_open (unfinished jobs that its API key may have; empty: any number).
-- Answer: the state that the job had; nothing for an unknown id and a chunk; {"full" or "limited", seconds} without room.
-- A repeated call changes nothing: the job is queued, or has gone on.
--@ include "lib/allow_when_full" "base/celery" "lib/chunks" "lib/commit" "base/keys_of_jobs" "lib/next_deadline" "lib/queue"
--@ include "lib/room" "lib/stop_run" "lib/turns"

-- Removes the traces of the job's end.
local function clear_end(id, key, owner, events, promise)
  redis.call('HDEL', key, 'worker', 'token', 'started', 'finished', 'expires', 'batch_size', 'error', 'timings', 'stopping',
    'progress', 'takes', 'uncharged')
  redis.call('PERSIST', key)
  if owner then
    add_open(owner, 1)
    redis.call('ZREM', OWNED_EXPIRES, owner .. ':' .. id)
  end
  if events then
    redis.call('PERSIST', said(id))
    redis.call('PERSIST', partial(id))
  end
  redis.call('DEL', seen(id))
  if promise then redis.call('PERSIST', promise_of(promise)) end
  if HAS_CELERYS_KEYS then redis.call('DEL', 'celery-task-meta-' .. id) end
  redis.call('ZREM', EXPIRES, id)
end

local function retry(id, most_open)
  local key = record(id)
  if is_chunk(id) then return nil end
  local status, old_score, created, finished, start_within, finish_within, stopping, promise, events, watched, owner, priority,
    old_turn, wish, not_before = unpack(redis.call('HMGET', key,
    'status', 'score', 'created', 'finished', 'start_within', 'finish_within', 'stopping', 'idempotency', 'events', 'watched',
    'owner', 'priority', 'turn', 'cache', 'not_before'))
  if not (status == 'failed' or status == 'cancelled' or status == 'expired') then return status end
  not_before = tonumber(not_before or 0)
  local is_later = not_before > now
  local from = is_later and not_before or now
  local again = has_no_room(redis.call('HSTRLEN', key, 'input'), is_later)
  if again then return {'full', again} end
  if owner and limited(owner, 1, most_open) then return {'limited', next_end_s()} end
  local start_by, finish_by = tonumber(start_within or 0), tonumber(finish_within or 0)
  if start_by > 0 then start_by = from + start_by end
  if finish_by > 0 then finish_by = from + finish_by end
  local turn = not is_later and take_turn(read_turns(), owner or '', priority, 1, 0)
  local score = (turn or from) + old_score - (old_turn or math.max(created, not_before))
  if turn then redis.call('HSET', key, 'turn', turn) else redis.call('HDEL', key, 'turn') end
  redis.call('HSET', key, 'status', 'queued', 'score', score, 'base', redis.call('HGET', key, 'attempt'), 'alone', 0,
    'start_by', start_by, 'finish_by', finish_by)
  clear_end(id, key, owner, events, promise)
  if watched then changed[#changed + 1] = id end
  local deadline = next_deadline(start_by, finish_by)
  if deadline > 0 then redis.call('ZADD', DEADLINES, deadline, id) end
  weigh(id, 1)
  if is_later then
    redis.call('ZADD', SCHEDULED, not_before, id)
  elseif stopping and finished + RUN_ENDS_US > now then
    redis.call('ZADD', DELAYED, finished + RUN_ENDS_US, id)
  else
    enqueue(id, score, wish)
  end
  return status
end

return commit(retry(unpack(ARGV, FIRST)))
