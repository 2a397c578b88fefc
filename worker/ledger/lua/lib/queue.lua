-- The queue of jobs that may run.
--@ include "lib/bells" "lib/equal_jobs/join" "base/keys_of_queue"

-- wish: the record's "cache", or nothing; group: the batch of a chunk, or nothing.
local function enqueue(id, score, wish, group)
  if group then redis.call('ZADD', CHUNKS, score, id) end
  if not wish then
    redis.call('ZADD', WAITING, score, id)
    ring(id)
  elseif join_equals(id, wish, score) then
    ring(id)
  end
end
