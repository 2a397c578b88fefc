-- discard: forgets the chunks of a batch that will not be accepted.
--
-- Arguments: group (the batch's id), chunks (their number).
-- An accepted batch is left alone, so a late or repeated call does no harm.
--@ include "lib/allow_when_full" "base/keys"

local group, chunks = unpack(ARGV, FIRST)
if redis.call('EXISTS', S .. 'batch:' .. group) == 1 then return end
for i = 0, chunks - 1 do redis.call('DEL', record(group .. '.' .. i)) end
