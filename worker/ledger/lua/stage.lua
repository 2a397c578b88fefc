-- stage: stores a chunk of a batch that is still on its way.
--
-- Arguments: id (of the chunk), group (the batch's id), first (the number of its first row in the batch), rows, lines,
--   life_us (for how long the chunk waits for the rest of the batch).
-- A repeated call writes the same fields again.
--@ include "lib/allow_when_full" "base/keys"

local id, group, first, rows, lines, life_us = unpack(ARGV, FIRST)
redis.call('HSET', record(id), 'group', group, 'first', first, 'rows', rows, 'input', lines)
redis.call('PEXPIRE', record(id), math.floor(life_us / 1000))
