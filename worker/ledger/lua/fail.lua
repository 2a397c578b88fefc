-- fail: stores why the service's plugin cannot be loaded.
--
-- Arguments: failure (JSON).
-- A repeated call writes the same field again.
--@ include "lib/allow_when_full" "base/keys"

redis.call('HSET', ABOUT, 'failure', ARGV[FIRST])
