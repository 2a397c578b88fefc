-- A chunk of a batch has a record like a job's, but is no job to the callers' operations: only those of its batch change it.
--@ include "base/keys_of_jobs"

local function is_chunk(id) return redis.call('HGET', record(id), 'group') end
