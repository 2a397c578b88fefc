-- Measures the time that runs take: the basis of turns and forecasts.
--@ include "base/numbers" "lib/token_numbers" "lib/tokens"

-- The pace is averaged over about this many inputs.
local PACE_INPUTS = 256
-- The mean time of a claim's jobs, and of a row of a chunk, is averaged over about this many runs, or this many
-- microseconds where these are more.
local MEAN_RUNS, MEAN_US = 20, 10000000

-- A process has ended a run of ``inputs`` inputs: of a chunk of ``rows`` rows, or (rows is 0) of that many jobs. The run began
-- when it was claimed or, where it was claimed ahead, when the run before it ended. The mean time of a claim is weighted by
-- its jobs: a forecast asks for the time of claims as large as a full queue makes them.
local function measure(worker, token, inputs, rows, claimed)
  local process, field = process_of(token), rows > 0 and 'row_time' or 'batch_time'
  local since, ahead = (redis.call('HGET', busy_key(worker), process) or ''):match('^(%S+) %S+ (%S+)$')
  local us = math.max(1, now - math.max(tonumber(since or 0), tonumber(claimed)))
  local pace, last = unpack(redis.call('HMGET', ABOUT, 'pace', field))
  pace = tonumber(pace or us / inputs)
  pace = pace + inputs / (inputs + PACE_INPUTS) * (us / inputs - pace)
  local mean, weight = (last or '0 0'):match('^(%S+) (%S+)')
  weight = weight * (1 - math.min(1 / MEAN_RUNS, us / MEAN_US)) + inputs
  mean = mean + inputs / weight * ((rows > 0 and us / rows or us) - mean)
  redis.call('HSET', ABOUT, 'pace', int(math.max(1, pace)), field, string.format('%.3f %.3f %.0f', mean, weight, now))
  if tonumber(ahead or 0) <= number_of(token) + 1 then ahead = 0 end  -- the claim ahead runs now
  redis.call('HSET', busy_key(worker), process, NOW .. ' ' .. int(rows) .. ' ' .. ahead)
end
