-- renew: renews a worker's lease, and fetches the cancels of its running jobs.
--
-- Arguments: worker, lease_us, info (JSON).
-- Answer: {1, {"<token> <job>" of a cancelled run, …}}, or {0, {}} where the lease has expired.
-- A cancel is fetched once; where the answer is lost, the run of the cancelled job goes on and its result is fenced off.
--@ include "lib/allow_when_full" "base/keys_of_workers" "base/now"

local worker, lease_us, info = unpack(ARGV, FIRST)
if not redis.call('ZSCORE', WORKERS, worker) then return {0, {}} end
redis.call('ZADD', WORKERS, now + lease_us, worker)  -- pillar: lease
redis.call('HSET', INFO, worker, info)
local cancels_key = S .. 'cancels:' .. worker
local cancels = redis.call('SMEMBERS', cancels_key)
redis.call('DEL', cancels_key)
return {1, cancels}
