-- The end of all turns: no job of an API key waits.
--@ include "base/keys_of_queue" "lib/turns"

local function nothing_waits() return redis.call('ZCARD', WAITING) + redis.call('ZCARD', DELAYED) == 0 end

local function end_turns()
  redis.call('HDEL', ABOUT, 'turn')
  redis.call('DEL', TURNS)
end
