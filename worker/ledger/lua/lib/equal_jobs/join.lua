-- A queued job takes its place among its equals.
--@ include "base/changes" "lib/equal_jobs/keys" "base/keys_of_queue"

-- The end of a leader settles at most this many equal jobs; further ones run by themselves.
local MAX_EQUALS = 1000

-- Gives true where the job waits in WAITING now, false where it is parked behind an equal one.
local function join_equals(id, wish, score)
  local key = split_wish(wish)
  flush()
  if redis.call('ZCARD', equals_key(key)) >= MAX_EQUALS then
    redis.call('HDEL', record(id), 'cache')
    redis.call('ZADD', WAITING, score, id)
    return true
  end
  local first, first_score = unpack(redis.call('ZRANGE', equals_key(key), 0, 0, 'WITHSCORES'))
  redis.call('ZADD', equals_key(key), score, id)
  if is_led(key) or (first and tonumber(first_score) <= tonumber(score)) then
    tally('parked', 1)
    return false
  end
  if first then
    redis.call('ZREM', WAITING, first)
    tally('parked', 1)
  end
  redis.call('ZADD', WAITING, score, id)
  return true
end
