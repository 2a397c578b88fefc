-- Parts of a chunk's results. Results over 8 MB are stored in parts, so that no call is large: each is a field
-- "<series>.<number>" of the chunk's record, numbered from 1. The fields "so_far", "merged" and "out" name a series each, as
-- "<series> <number of parts>". A series that "out" names is never written again.
--@ include "base/keys"

-- Drops the parts that this field names, and the field.
local function drop_parts(key, field)
  local series, parts = (redis.call('HGET', key, field) or ''):match('^(%d+) (%d+)$')
  if not series then return end
  for i = 1, parts do redis.call('HDEL', key, series .. '.' .. i) end
  redis.call('HDEL', key, field)
end
