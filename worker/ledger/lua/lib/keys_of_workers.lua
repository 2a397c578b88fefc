-- Keys of workers.
--@ include "lib/keys"

local WORKERS, INFO = S .. 'workers', S .. 'workers:info'
