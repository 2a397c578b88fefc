-- API keys and the number of their jobs that have not ended.
--@ include "base/keys"

local OPEN = S .. 'open'

-- An API key has this many more (or, negative: fewer) unfinished jobs.
local function add_open(owner, jobs)
  if redis.call('HINCRBY', OPEN, owner, jobs) <= 0 then redis.call('HDEL', OPEN, owner) end
end
