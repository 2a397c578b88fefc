-- For how long the keys of an ended job are kept.
--@ include "base/numbers"

local remember_us = tonumber(ARGV[2])
local lifetimes = {}  -- by keep_us: the jobs of a call mostly share one

-- Three texts: when the record of a job that ends now is dropped (microseconds), and for how many milliseconds the record
-- and its "seen" key are kept.
local function lifetime(keep_us)
  local known = lifetimes[keep_us]
  if not known then
    local ms = math.max(1, math.floor(keep_us / 1000))
    known = {int(now + keep_us), int(ms), int(ms + math.floor(remember_us / 1000))}
    lifetimes[keep_us] = known
  end
  return unpack(known)
end
