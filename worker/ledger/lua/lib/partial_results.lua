-- The results of a chunk that is not finished: the fields "so_far" and "partial".
--@ include "lib/parts"

-- Stores the lines that follow the parts of "so_far". parts: how many these are; with '0', the parts of a run that was
-- handed back are dropped.
local function keep_partial(key, lines, parts)
  if parts == '0' then drop_parts(key, 'so_far') end
  redis.call('HSET', key, 'partial', lines)
end
