-- cancel: ends a job that has not ended.
--
-- Arguments: id, keep_running (1: a running job is left alone).
-- Answer: the state that the job had, or nothing for an unknown id.
-- A repeated call changes nothing: the job has ended.
--@ include "lib/allow_when_full" "lib/cancel_job" "lib/commit"

local id, keep_running = unpack(ARGV, FIRST)
return commit(cancel_job(id, keep_running ~= '1'))
