-- extend: a pool process renews the lease of its worker, whose main process may be stopped.
--
-- Arguments: worker, lease_us.
-- Answer: 1, or 0 where the lease has expired and the worker's jobs belong to other workers.
-- A repeated call does no harm: a lease only grows.
--@ include "lib/allow_when_full" "base/keys_of_workers" "base/now"

local worker, lease_us = unpack(ARGV, FIRST)
if not redis.call('ZSCORE', WORKERS, worker) then return 0 end
redis.call('ZADD', WORKERS, 'GT', now + lease_us, worker)  -- pillar: lease
return 1
