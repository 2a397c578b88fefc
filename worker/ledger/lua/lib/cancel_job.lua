-- Ends a job as cancelled.
--@ include "lib/finish" "lib/stop_run"

-- A running job is ended only with ends_running. Gives the state that the job had, or false for an unknown id.
local function cancel_job(id, ends_running)
  local status, worker = unpack(redis.call('HMGET', record(id), 'status', 'worker'))
  if status == 'queued' or status == 'running' and ends_running then
    if status == 'running' then stop_run(id, worker) end
    finish(id, 'cancelled')
  end
  return status
end
