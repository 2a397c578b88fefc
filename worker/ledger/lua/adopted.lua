-- adopted: forgets messages of other producers that a claim took: their jobs are stored now.
--
-- Arguments: worker, then the fields of S:taken:<worker>.
-- A repeated call finds nothing to forget.
--@ include "lib/allow_when_full" "base/keys"

redis.call('HDEL', S .. 'taken:' .. ARGV[FIRST], unpack(ARGV, FIRST + 1))
