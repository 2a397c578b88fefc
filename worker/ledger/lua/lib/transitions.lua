-- The transitions between the states of a job: the same as TRANSITIONS in jobs.py; a test compares them. Comparisons, since
-- Redis would make a table at each call, in 1.5 us (measured).

local function must_go(id, from, to)
  local may
  if from == 'queued' then may = to == 'running' or to == 'cancelled' or to == 'expired' or to == 'failed'
  elseif from == 'running' then may = to == 'succeeded' or to == 'failed' or to == 'cancelled' or to == 'queued'
  elseif from == 'failed' or from == 'cancelled' or from == 'expired' then may = to == 'queued'  -- by retry alone
  end
  if not may then  -- pillar: fencing
    error('job ' .. id .. ' cannot go from ' .. tostring(from) .. ' to ' .. to)
  end
end
