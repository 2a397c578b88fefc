-- Keys of the jobs that are queued.
--@ include "lib/keys"

local WAITING, DELAYED, SCHEDULED, CHUNKS = S .. 'waiting', S .. 'delayed', S .. 'scheduled', S .. 'chunks'
