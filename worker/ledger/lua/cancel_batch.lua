-- cancel_batch: ends the chunks of a batch that have not ended.
--
-- Arguments: group (the batch's id).
-- Answer: 1, or 0 where the batch had ended; nothing for an unknown batch.
-- A repeated call changes nothing: the chunks have ended.
--@ include "lib/allow_when_full"
--@ include "lib/batches"
--@ include "lib/commit"
--@ include "lib/finish"
--@ include "lib/stop_run"

local group = ARGV[FIRST]
local chunks, finished = unpack(redis.call('HMGET', batch_of(group), 'chunks', 'finished'))
if not chunks then return nil end
if finished then return 0 end
redis.call('HSET', batch_of(group), 'stopped', 1)
for i = 0, chunks - 1 do
  local id = group .. '.' .. i
  local status, worker = unpack(redis.call('HMGET', record(id), 'status', 'worker'))
  if status == 'running' then stop_run(id, worker) end
  if status == 'queued' or status == 'running' then finish(id, 'cancelled') end
end
return commit(1)
