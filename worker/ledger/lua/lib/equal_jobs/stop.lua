-- A leader is queued again.
--@ include "lib/equal_jobs/places"

-- Where the job led its equals, the next of them takes its place in the queue.
local function stop_leading(id, wish)
  local key = split_wish(wish)
  if redis.call('GET', leader_key(key)) ~= id then return end
  redis.call('DEL', leader_key(key))
  promote(key)
end
