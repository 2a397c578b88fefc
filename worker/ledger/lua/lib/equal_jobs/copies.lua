-- A job ends with the output of another job.
--
-- A call copies about MAX_COPIED bytes of outputs. A job beyond that gets the other job's id as "takes" in its record and
-- waits in S:delayed for the next sweep.
--@ include "lib/ends"

local MAX_COPIED = 8388608
local copied = 0
local reused = 0  -- jobs that this call has ended with the output of another job

-- The queued job goes by way of "running", as every job that succeeds.
local function take_over(id, from, output)
  must_go(id, 'queued', 'running')
  weigh(id, -1)
  redis.call('HSET', record(id), 'status', 'running', 'started', NOW, 'cached_from', from)
  redis.call('HDEL', record(id), 'takes')
  tally('reused', 1)
  reused = reused + 1
  copied = copied + #output
  write_end(id, redis.call('HMGET', record(id), unpack(END_FIELDS)), 'succeeded', output)
end

local function take_later(id, from)
  redis.call('HSET', record(id), 'takes', from)
  redis.call('ZADD', DELAYED, NOW, id)
end
