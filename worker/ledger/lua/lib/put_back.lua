-- A running job is queued again.
--@ include "lib/batches" "lib/equal_jobs/stop" "lib/history" "lib/queue" "lib/transitions" "lib/turns"

-- The job takes the place that its age gives it, after pause microseconds (0: at once).
-- outcome: why the attempt ended, or nil where it had not begun; charged: whether the attempt counts against max_attempts;
-- alone: whether the job is run by itself next, as a chunk always is; problem: the attempt's error as JSON, or nil.
local function put_back(id, outcome, charged, alone, pause, problem)
  local key = record(id)
  local was, worker, score, group, rows, created, watched, turn, wish = unpack(redis.call('HMGET', key,
    'status', 'worker', 'score', 'group', 'rows', 'created', 'watched', 'turn', 'cache'))
  must_go(id, was, 'queued')
  score = tonumber(score)
  if turn then
    score = not_later(key, score, turn)
  elseif tonumber(created) > now then
    score = now + score - created  -- stored while the clock was ahead
  end
  if outcome then note_attempt(id, outcome, charged, problem) end
  if group then
    count(group, 'running', -rows)
    report_batch(group)
    redis.call('HSET', key, 'why', outcome)
    alone = true
  end
  weigh(id, 1)
  if outcome then tally('requeued:' .. outcome, 1) end
  gather('HDEL', S .. 'running:' .. worker, id)
  redis.call('HSET', key, 'status', 'queued', 'alone', alone and 1 or 0)
  redis.call('HDEL', key, 'worker', 'token', 'started', 'batch_size', 'progress')
  if watched then changed[#changed + 1] = id end
  if not charged then redis.call('HINCRBY', key, 'attempt', -1) end
  if outcome and not charged then redis.call('HINCRBY', key, 'uncharged', 1) end
  if wish then stop_leading(id, wish) end
  if pause > 0 then
    redis.call('ZADD', DELAYED, now + pause, id)
  else
    enqueue(id, score, wish, group)
  end
end
