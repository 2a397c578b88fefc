-- revoke: Celery's revoke, which also ends a job whose message no worker has adopted yet.
--
-- Arguments: terminate (1: running jobs are ended too, else 0), then the ids.
-- Answer, for each id: the state that the job had; empty for an unknown id and for a chunk of a batch.
-- A repeated call changes nothing: the jobs have ended, the marks are set.
--@ include "lib/allow_when_full" "lib/cancel_job" "lib/chunks" "lib/commit" "lib/lifetimes"

local terminate = ARGV[FIRST]
local states = {}
for i = FIRST + 1, #ARGV do
  local id = ARGV[i]
  local status = not is_chunk(id) and cancel_job(id, terminate == '1')
  if not status and redis.call('EXISTS', seen(id)) == 0 then
    redis.call('SET', S .. 'revoked:' .. id, '1', 'PX', int(remember_us / 1000))
  end
  states[#states + 1] = status or ''
end
return commit(states)
