-- cancel: ends a job that has not ended.
--
-- Arguments: id, keep_running (1: a running job is left alone).
-- Answer: the state that the job had, or nothing for an unknown id.
-- A repeated call changes nothing: the job has ended.
--@ include "lib/allow_when_full"
--@ include "lib/commit"
--@ include "lib/finish"
--@ include "lib/stop_run"

local id, keep_running = unpack(ARGV, FIRST)
local status, worker = unpack(redis.call('HMGET', record(id), 'status', 'worker'))
if status == 'queued' or status == 'running' and keep_running ~= '1' then
  if status == 'running' then stop_run(id, worker) end
  finish(id, 'cancelled')
end
return commit(status)
