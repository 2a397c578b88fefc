-- postpone: queues jobs of a claim again that have not begun; no attempt is charged.
--
-- Arguments: token, pause_us (for how long they wait), then the ids.
-- A repeated call finds the jobs queued, and changes nothing.
--@ include "lib/allow_when_full" "lib/commit" "lib/put_back"

local token, pause = unpack(ARGV, FIRST, FIRST + 1)
for i = FIRST + 2, #ARGV do
  local id = ARGV[i]
  local holder, status = unpack(redis.call('HMGET', record(id), 'token', 'status'))
  if holder == token and status == 'running' then put_back(id, nil, false, false, tonumber(pause)) end
end
return commit(nil)
