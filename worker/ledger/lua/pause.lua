-- pause: a chunk whose rows turn out to take long makes room for more urgent jobs, and waits with its results so far.
--
-- Arguments: token, id, lines (the results so far that follow the parts), parts (their number), done (rows that this run has
--   added).
-- Answer: 1 where the chunk waits, or is no longer this token's; 0 where nothing is more urgent: the run goes on.
-- Where there are turns, the rest of the chunk takes a turn of its own, as if it had come now.
-- A repeated call finds the chunk queued, and answers 1.
--@ include "lib/allow_when_full" "lib/commit" "lib/measure" "lib/partial_results" "lib/put_back"

local function pause(token, id, lines, parts, done)
  local key = record(id)
  local holder, status, attempt, score, turn, created, worker, started = unpack(redis.call('HMGET', key,
    'token', 'status', 'attempt', 'score', 'turn', 'created', 'worker', 'started'))
  if holder ~= token or status ~= 'running' then return 1 end
  done, score = tonumber(done), tonumber(score)
  local last = tonumber(redis.call('HGET', ABOUT, 'turn'))
  local own_turn = last and tonumber(turn or created)
  local rest_turn = own_turn and math.max(own_turn + done * STEP_US, last)
  if rest_turn then score = score + rest_turn - own_turn end
  local first, first_score = unpack(redis.call('ZRANGE', WAITING, 0, 0, 'WITHSCORES'))
  if not first or tonumber(first_score) >= score then return 0 end
  keep_partial(key, lines, parts)
  redis.call('HSET', key, 'base', attempt, 'retried', attempt, 'score', int(score))
  put_back(id, 'paused', true, false, 0)
  if rest_turn then redis.call('HSET', key, 'turn', int(rest_turn)) end
  measure(worker, token, done, done, tonumber(started))
  return 1
end

return commit(pause(unpack(ARGV, FIRST)))
