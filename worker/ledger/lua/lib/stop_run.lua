-- Ends the run of a job that ended, or is to end, by another cause than its run.
--@ include "base/keys"

-- A worker ends the run within this time; a retry must not begin before.
local RUN_ENDS_US = 4000000

local function stop_run(id, worker)
  redis.call('SADD', S .. 'cancels:' .. worker, redis.call('HGET', record(id), 'token') .. ' ' .. id)
  redis.call('HSET', record(id), 'stopping', 1)
end
