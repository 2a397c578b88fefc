-- The start of a queued job that waits for an equal one.
--@ include "lib/equal_jobs/keys"

-- Whether an equal of this queued job runs. If so, the job has started in time, even if that run fails.
local function has_begun(id)
  local wish = redis.call('HGET', record(id), 'cache')
  if not (wish and is_led(split_wish(wish))) then return false end
  redis.call('HSET', record(id), 'start_by', '0')
  return true
end
