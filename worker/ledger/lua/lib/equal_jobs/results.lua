-- A new job finds the result of an equal one.
--@ include "lib/equal_jobs/copies" "lib/equal_jobs/keys"

local function has_output(id) return redis.call('HSTRLEN', record(id), 'output') > 0 end

-- Gives the id of the job whose result the wish allows to take over, or nothing; and its output, or nothing where this call
-- copies no more.
local function find_result(wish)
  local key, us = split_wish(wish)
  local id, ended_at = (redis.call('GET', S .. 'cached:' .. key) or ''):match('^(%S+) (%S+)$')
  if not id or ended_at + us <= now then return nil end
  if copied >= MAX_COPIED then return has_output(id) and id or nil end
  local output = redis.call('HGET', record(id), 'output')
  if output then return id, output end
end

-- Whether a new job would wait for the run of an equal one, and so takes no turn of its own.
local function has_equals(wish)
  local key = split_wish(wish)
  return is_led(key) or redis.call('EXISTS', equals_key(key)) == 1
end
