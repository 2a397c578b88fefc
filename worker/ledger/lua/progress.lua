-- progress: stores the results so far of a chunk that is run row by row. A run that was lost before counts no longer
-- against the chunk's attempts.
--
-- Arguments: token, id, lines (the results so far that follow the parts), parts (their number).
-- Answer: 1, or 0 where the chunk is no longer this token's.
-- A repeated call writes the same fields again.
--@ include "lib/allow_when_full" "lib/partial_results"

local token, id, lines, parts = unpack(ARGV, FIRST)
local key = record(id)
local holder, status, attempt = unpack(redis.call('HMGET', key, 'token', 'status', 'attempt'))
if holder ~= token or status ~= 'running' then return 0 end
keep_partial(key, lines, parts)
redis.call('HSET', key, 'base', attempt - 1)
return 1
