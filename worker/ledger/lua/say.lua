-- say: stores events that the jobs of a claim have published: "progress", "log" and "output" (a partial output).
--
-- Arguments: token, most ("progress" and "log" events that are kept of each job), then for each job: id, the number of its
--   events, and for each event: number (within this run of the job, from 1), name, data (JSON), progress (or empty).
-- Events that are stored already are passed over, so a repeated call changes nothing; and so are all events of a job that is
-- no longer this token's or has ended.
--@ include "lib/allow_when_full" "lib/commit" "base/keys_of_jobs" "base/numbers"

local ARGUMENTS = 4  -- of an event
local token, most = unpack(ARGV, FIRST, FIRST + 1)

-- The events of the arguments from i to last.
local function store_events(id, i, last)
  local key = record(id)
  local holder, status, started, attempt, number, said_by, known = unpack(redis.call('HMGET', key,
    'token', 'status', 'started', 'attempt', 'events', 'said_by', 'said'))
  if holder ~= token or status ~= 'running' then return end
  number, known = tonumber(number or 0), said_by == token and tonumber(known) or 0
  for event = i, last, ARGUMENTS do
    local own_number, name, data, progress = unpack(ARGV, event, event + ARGUMENTS - 1)
    if tonumber(own_number) > known then
      number, known = number + 1, tonumber(own_number)
      if name == 'output' then
        redis.call('XADD', partial(id), int(number), 'name', name, 'run', started, 'attempt', attempt, 'data', data)
      elseif most ~= '0' then
        redis.call('XADD', said(id), 'MAXLEN', most, int(number), 'name', name, 'run', started, 'attempt', attempt,
          'data', data)
      end
      if progress ~= '' then redis.call('HSET', key, 'progress', progress) end
    end
  end
  redis.call('HSET', key, 'events', int(number), 'said_by', token, 'said', int(known))
  changed[#changed + 1] = id
end

local i = FIRST + 2
while i <= #ARGV do
  local id, events = unpack(ARGV, i, i + 1)
  local next_job = i + 2 + ARGUMENTS * events
  store_events(id, i + 2, next_job - 1)
  i = next_job
end
return commit(nil)
