-- Parked jobs take a place in the queue.
--@ include "lib/bells" "base/changes" "lib/equal_jobs/keys" "base/keys_of_queue" "base/numbers" "lib/turns"

-- The score of a job that was parked. fair: by read_turns, where the job takes a turn of its own now, as every job that runs
-- by itself.
local function new_place(id, fair)
  local score, turn, created, owner, priority = unpack(redis.call('HMGET', record(id),
    'score', 'turn', 'created', 'owner', 'priority'))
  score, created = tonumber(score), tonumber(created)
  local new_turn = fair and turn and take_turn(fair, owner or '', priority, 1, 0)
  if new_turn then
    score = new_turn + score - turn
    redis.call('HSET', record(id), 'score', int(score), 'turn', int(new_turn))
  elseif turn then
    score = not_later(record(id), score, turn)
  elseif created > now then
    score = now + score - created  -- stored while the clock was ahead
  end
  return int(score)
end

-- No equal runs, or waits in WAITING, any more: the next equal does.
local function promote(key)
  local id = first_of(key)
  if not id then return end
  local score = new_place(id)
  redis.call('ZADD', equals_key(key), score, id)
  redis.call('ZADD', WAITING, score, id)
  tally('parked', -1)
  ring(id)
end

-- Each parked job runs by itself.
local function release_equals(key)
  local ids, fair = redis.call('ZRANGE', equals_key(key), 0, -1), read_turns()
  redis.call('DEL', equals_key(key))
  tally('parked', -#ids)
  for _, id in ipairs(ids) do
    redis.call('HDEL', record(id), 'cache')
    redis.call('ZADD', WAITING, new_place(id, fair), id)
    ring(id)
  end
end
