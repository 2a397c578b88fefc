-- cancel_batch: ends the chunks of a batch that have not ended, see lib/pages. Where a retry of the batch is still being
-- queued, that is done first.
--
-- Arguments: group (the batch's id).
-- Answer: as of "advance"; -1 where the batch had ended; nothing for an unknown batch.
-- A repeated call does the page after.
--@ include "lib/allow_when_full" "lib/commit" "lib/pages"

local group = ARGV[FIRST]
local chunks, finished = unpack(redis.call('HMGET', batch_of(group), 'chunks', 'finished'))
if not chunks then return nil end
if finished then return -1 end
redis.call('HSET', batch_of(group), 'stopped', 1)
if not redis.call('HGET', PAGES, group) then redis.call('HSET', PAGES, group, 'cancel 0 0') end
return commit(advance(group))
