-- The end of an operation that changes jobs: the collected commands, the counters and the two channels.
--@ include "base/changes"

-- Gives the operation's answer.
local function commit(answer)
  flush()
  if bytes_change ~= 0 then tally('waiting_bytes', bytes_change) end
  for field, number in pairs(counted) do redis.call('HINCRBY', ABOUT, field, number) end
  if #ended > 0 then redis.call('PUBLISH', 'jobs:ended', cjson.encode(ended)) end
  if #changed > 0 then redis.call('PUBLISH', 'jobs:told', cjson.encode(changed)) end
  return answer
end
