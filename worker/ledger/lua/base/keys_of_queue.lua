-- Keys of the jobs that are queued.
--@ include "base/keys"

local WAITING, DELAYED, SCHEDULED, CHUNKS = S .. 'waiting', S .. 'delayed', S .. 'scheduled', S .. 'chunks'
