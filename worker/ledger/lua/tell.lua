-- tell: a worker describes its service, once its model is loaded.
--
-- Arguments: version, knobs (JSON), max_queue_size, max_queue_bytes, cache_for_us, model (the hash of version and knobs).
-- A repeated call writes the same fields again.
--@ include "lib/allow_when_full" "base/keys"

local version, knobs, max_queue_size, max_queue_bytes, cache_for, model = unpack(ARGV, FIRST)
if redis.call('HGET', ABOUT, 'model') ~= model then redis.call('HDEL', ABOUT, 'batch_time', 'row_time') end
redis.call('HSET', ABOUT, 'version', version, 'knobs', knobs, 'max_queue_size', max_queue_size,
  'max_queue_bytes', max_queue_bytes, 'cache_for', cache_for, 'model', model)
redis.call('HDEL', ABOUT, 'failure')
