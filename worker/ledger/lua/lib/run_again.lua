-- A run that came to nothing.
--@ include "lib/errors" "lib/finish" "lib/put_back"

-- The longest pause before a further attempt, in microseconds.
local MAX_PAUSE_US = 300000000
-- Runs that came to nothing and do not count against max_attempts. A run that stops its own worker is handed back each time.
local MAX_UNCHARGED = 20

local REASONS = {
  lost = 'the process that ran the job died',
  memory = "the process that ran the job grew over the service's memory_limit_mb",
  timed_out = "the run took longer than the service's time_limit_s",
}

-- The run of this running job came to nothing; for reason and pause see give_up. Jobs of the same claim are not charged and
-- run alone next, and so does this one. Gives why the job has failed, or nothing where it runs again.
local function run_again(id, reason, pause)
  local batch_size, attempt, base, max_attempts, group, uncharged = unpack(redis.call('HMGET', record(id),
    'batch_size', 'attempt', 'base', 'max_attempts', 'group', 'uncharged'))
  local is_alone = tonumber(batch_size or 1) <= 1
  local attempts = attempt - (base or 0)
  local is_last = attempts >= tonumber(max_attempts)
  local code = reason == 'timed_out' and 'timed_out' or 'worker_lost'
  local is_charged = tonumber(uncharged or 0) >= MAX_UNCHARGED
  if reason == 'handed_back' and is_charged then reason = 'lost' end
  if reason == 'handed_back' then
    put_back(id, reason, false, false, 0)
  elseif not is_alone and not is_charged then
    put_back(id, reason, false, true, 0)
  elseif is_last or (reason == 'timed_out' and pause == 0 and not group) then
    local message = REASONS[reason] .. (attempts > 1 and ', in each of ' .. int(attempts) .. ' attempts' or '')
    finish(id, 'failed', error_json(code, message, true))
    return code .. ': ' .. message
  else
    local pause_us = math.min(MAX_PAUSE_US, pause * 2 ^ (attempts - 1))
    put_back(id, reason, true, true, pause_us, error_json(code, REASONS[reason], true))
  end
end
