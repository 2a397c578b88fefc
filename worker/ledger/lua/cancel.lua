-- cancel: ends a job that has not ended.
--
-- Arguments: id, keep_running (1: a running job is left alone).
-- Answer: the state that the job had, or nothing for an unknown id and for a chunk of a batch.
-- A repeated call changes nothing: the job has ended.
--@ include "lib/allow_when_full" "lib/cancel_job" "lib/chunks" "lib/commit"

local id, keep_running = unpack(ARGV, FIRST)
if is_chunk(id) then return nil end
return commit(cancel_job(id, keep_running ~= '1'))
