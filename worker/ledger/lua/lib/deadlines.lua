-- Ends jobs that are past a deadline.
--@ include "lib/equal_jobs/begun" "lib/errors" "lib/finish" "lib/stop_run"

-- start_by, finish_by: times; 0: none. Gives whether a deadline has ended the job.
local function end_if_late(id, start_by, finish_by, status)
  if start_by > 0 and start_by <= now and status == 'queued' and not has_begun(id) then
    finish(id, 'expired')
    return true
  elseif finish_by > 0 and finish_by <= now then
    if status == 'running' then stop_run(id, redis.call('HGET', record(id), 'worker')) end
    finish(id, 'failed', error_json('timed_out', 'not finished within finish_within_s', true))
    return true
  end
  return false
end
