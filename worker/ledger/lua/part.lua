-- part: stores the next part of a chunk's results, see lib/parts.
--
-- Arguments: token, id, series ("so_far" or "merged"), number (of the part, from 1), lines (with the lines of "partial").
-- Answer: 1, or 0 where the chunk is no longer this token's.
-- A repeated call writes the same part again; the first part begins a series anew.
--@ include "lib/allow_when_full" "base/numbers" "lib/parts"

local token, id, field, number, lines = unpack(ARGV, FIRST)
local key = record(id)
local holder, status, out = unpack(redis.call('HMGET', key, 'token', 'status', 'out'))
if holder ~= token or status ~= 'running' then return 0 end
number = tonumber(number)
if number == 1 then drop_parts(key, field) end
local series = (out or '0'):match('^%d+') + (field == 'so_far' and 1 or 2)
redis.call('HSET', key, int(series) .. '.' .. int(number), lines, field, int(series) .. ' ' .. int(number))
if field == 'so_far' then redis.call('HDEL', key, 'partial') end
return 1
