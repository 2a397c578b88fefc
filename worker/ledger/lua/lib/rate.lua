-- The rate at which jobs end, averaged over RATE_S seconds.
--@ include "base/now" "base/keys"

local RATE_S = 10

-- Jobs that end in a second, as of now.
local function rate()
  local last, at = unpack(redis.call('HMGET', ABOUT, 'rate', 'rate_at'))
  if not last then return 0 end
  return tonumber(last) * math.exp(-(now - tonumber(at)) / (RATE_S * 1000000))
end
