-- Changes that a call makes, collected until lib/commit sends them.
--@ include "base/gather" "base/keys"

local ended = {}  -- entries for the channel jobs:ended
local changed = {}  -- entries for the channel jobs:told
local counted = {}  -- fields of S:about -> the sum that this call adds: one command for each field, however many jobs
local bytes_change = 0  -- of the inputs of queued jobs

local function tally(field, number) counted[field] = (counted[field] or 0) + number end

-- sign: 1 where the job is queued now, -1 where it is no longer queued.
local function weigh(id, sign) bytes_change = bytes_change + sign * redis.call('HSTRLEN', record(id), 'input') end
