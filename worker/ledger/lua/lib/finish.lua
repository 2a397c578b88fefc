-- The end of a job, and of the jobs that equal it: the only way into a terminal state.
--@ include "lib/ends" "lib/equal_jobs/settle"

-- For the arguments see write_end.
local function finish_job(id, job, status, value, timings, batch_size, failed)
  write_end(id, job, status, value, timings, batch_size, failed)
  local was, _, _, _, _, keep, wish = unpack(job, 1, 7)
  if wish then settle_equals(id, wish, was, status, value, keep) end
end

local function finish(id, status, value)
  finish_job(id, redis.call('HMGET', record(id), unpack(END_FIELDS)), status, value)
end
