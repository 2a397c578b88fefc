-- The transitions between the states of a job: the same table as TRANSITIONS in jobs.py; a test compares them.

local TRANSITIONS = {
  queued = {running = true, cancelled = true, expired = true, failed = true},
  running = {succeeded = true, failed = true, cancelled = true, queued = true},
  failed = {queued = true}, cancelled = {queued = true}, expired = {queued = true},  -- by retry alone
}

local function must_go(id, from, to)
  if not (TRANSITIONS[from] and TRANSITIONS[from][to]) then  -- pillar: fencing
    error('job ' .. id .. ' cannot go from ' .. tostring(from) .. ' to ' .. to)
  end
end
