-- Keys of workers.
--@ include "base/keys"

local WORKERS, INFO = S .. 'workers', S .. 'workers:info'
