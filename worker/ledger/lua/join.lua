-- join: enters a new worker of the service, with its lease.
--
-- Arguments: worker, lease_us, info (JSON).
-- A repeated call renews the lease.
--@ include "lib/allow_when_full" "base/keys_of_workers" "base/now"

local worker, lease_us, info = unpack(ARGV, FIRST)
redis.call('ZADD', WORKERS, now + lease_us, worker)
redis.call('HSET', INFO, worker, info)
