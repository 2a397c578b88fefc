-- cancel_batch: ends the chunks of a batch that have not ended.
--
-- Arguments: group (the batch's id).
-- Answer: 1, or 0 where the batch had ended; nothing for an unknown batch.
-- A repeated call changes nothing: the chunks have ended.
--@ include "lib/allow_when_full" "lib/batches" "lib/cancel_job" "lib/commit"

local group = ARGV[FIRST]
local chunks, finished = unpack(redis.call('HMGET', batch_of(group), 'chunks', 'finished'))
if not chunks then return nil end
if finished then return 0 end
redis.call('HSET', batch_of(group), 'stopped', 1)
for i = 0, chunks - 1 do cancel_job(group .. '.' .. i, true) end
return commit(1)
