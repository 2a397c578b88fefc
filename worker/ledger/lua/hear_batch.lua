-- hear_batch: reads a batch; from now on its changes are published on jobs:told.
--
-- Arguments: group (the batch's id).
-- Answer: its record, or nothing for an unknown batch.
-- A repeated call sets the same mark again.
--@ include "lib/allow_when_full" "base/keys"

local batch_key = S .. 'batch:' .. ARGV[FIRST]
local created, watched = unpack(redis.call('HMGET', batch_key, 'created', 'watched'))
if not created then return nil end
if not watched then redis.call('HSET', batch_key, 'watched', 1) end
return redis.call('HGETALL', batch_key)
