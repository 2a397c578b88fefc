-- Lets a script run in a full Redis (maxmemory), which refuses to store new jobs but must never refuse to end the jobs that
-- it has: after one write that needs no memory, a script may go on (Redis's script.c, scriptVerifyOOM).
--@ include "base/keys"

redis.call('DEL', S .. 'none')
