-- complete: writes how the jobs of a claim ended.
--
-- Arguments: token, earlier (the claim's jobs that earlier calls have completed; -1: further calls will complete the rest),
--   series (the parts that precede a chunk's output: "so_far" or "merged"; else empty), then for each job: id, status,
--   value (the output or the error, JSON), timings, batch_size, pause_us (0: this end is final; else a failed job is run
--   again after the pause, while it has attempts left), failed (the failed rows of a chunk, see keep_failed).
-- Answer, for each job: 1 where it ended so, 2 where it will be run again, 0 where it is no longer this token's (cancelled,
--   or claimed again since): the fence against a late worker.
-- A repeated call finds the jobs ended by this token, and answers as the first one did.
--@ include "lib/allow_when_full" "lib/commit" "lib/finish" "lib/measure" "lib/put_back" "lib/rate"

local ARGUMENTS = 7  -- of a job
local FIELDS = {unpack(END_FIELDS)}
local OTHERS = #FIELDS + 1
FIELDS[OTHERS], FIELDS[OTHERS + 1], FIELDS[OTHERS + 2], FIELDS[OTHERS + 3] = 'token', 'attempt', 'base', 'max_attempts'

local token, earlier, series = unpack(ARGV, FIRST)
local inputs = 0
local measured_worker, measured_rows, measured_start

-- The parts that precede a chunk's output are its "out" now; all others are dropped.
local function settle_parts(key)
  local so_far, merged, out = unpack(redis.call('HMGET', key, 'so_far', 'merged', 'out'))
  if not (so_far or merged or out) then return end
  local kept = series == 'so_far' and so_far or series == 'merged' and merged
  if kept then redis.call('HDEL', key, series) end
  drop_parts(key, 'so_far')
  drop_parts(key, 'merged')
  drop_parts(key, 'out')
  if kept then redis.call('HSET', key, 'out', kept) end
end

-- The job of the arguments from i on; gives its part of the answer.
local function complete_job(i)
  local id, status, value, timings, batch_size, pause, failed = unpack(ARGV, i, i + ARGUMENTS - 1)
  local job = redis.call('HMGET', record(id), unpack(FIELDS))
  local was, worker, group, rows, started = unpack(job, 1, 5)
  local holder, attempt, base, max_attempts = unpack(job, OTHERS)
  if holder ~= token then return 0 end  -- pillar: fencing
  if was ~= 'running' then return was == status and 1 or 0 end  -- pillar: fencing
  if not (group and base) then  -- the rest of a chunk that was run before is not measured
    inputs = inputs + (rows or 1)
    measured_worker, measured_rows, measured_start = worker, rows, started
  end
  pause = tonumber(pause)
  if pause > 0 and attempt - (base or 0) < tonumber(max_attempts) then
    put_back(id, 'failed', true, false, pause, value)
    return 2
  end
  if group and status == 'succeeded' then settle_parts(record(id)) end
  finish_job(id, job, status, value, timings, batch_size, failed)
  return 1
end

local answer = {}
for i = FIRST + 3, #ARGV, ARGUMENTS do answer[#answer + 1] = complete_job(i) end
earlier = tonumber(earlier)
if measured_worker and earlier >= 0 then
  measure(measured_worker, token, inputs + earlier, tonumber(measured_rows or 0), measured_start)
end
if #ended > 0 then redis.call('HSET', ABOUT, 'rate', rate() + (#ended - reused) / RATE_S, 'rate_at', now) end
return commit(answer)
