-- Whether there is room for further jobs.
--@ include "base/keys_of_queue" "base/owners" "lib/rate"

-- Bytes of inputs that may wait while no worker has reported the service's own max_queue_bytes yet.
local DEFAULT_MAX_BYTES = 1073741824

-- The number of jobs that wait for their run. parked: "parked" of S:about.
local function count_waiting(parked)
  return redis.call('ZCARD', WAITING) + redis.call('ZCARD', DELAYED) + (parked or 0)
end

-- Nothing where ``bytes`` further bytes find room. Else the seconds after which to try again: the time in which a tenth of
-- the queue is worked off at the measured rate. most, most_bytes: the limits of S:about.
local function full(waiting, waiting_bytes, bytes, most, most_bytes)
  most, most_bytes = tonumber(most or 0), tonumber(most_bytes or DEFAULT_MAX_BYTES)
  local has_many = most > 0 and waiting >= most
  if not has_many and (most_bytes == 0 or waiting_bytes + bytes <= most_bytes) then return nil end
  local speed = rate()
  if speed < 0.01 then return 60 end
  return math.max(1, math.min(60, math.ceil((waiting / 10 + 1) / speed)))
end

-- Whether an API key that may have ``most`` unfinished jobs (empty: any number) has no room for this many more.
local function limited(owner, jobs, most)
  return most ~= '' and tonumber(redis.call('HGET', OPEN, owner) or 0) + jobs > tonumber(most)
end

-- Seconds until the next job ends, at the measured rate.
local function next_end_s()
  local speed = rate()
  return speed < 0.01 and 10 or math.max(1, math.min(60, math.ceil(1 / speed)))
end
