-- overview: reads how a service stands.
--
-- Answer: {queued jobs, time since which the oldest of the ten most urgent of them waits (0: none waits), now, {info of a live
--   worker, …}, S:about, running jobs (and chunks of batches), queued jobs whose time has not come}.
-- It only reads.
--@ include "base/keys_of_queue" "base/keys_of_workers" "base/numbers"

local oldest = 0
for _, id in ipairs(redis.call('ZRANGE', WAITING, 0, 9)) do
  local created, not_before = unpack(redis.call('HMGET', record(id), 'created', 'not_before'))
  local since = math.max(tonumber(created or now), tonumber(not_before or 0))
  if oldest == 0 or since < oldest then oldest = since end
end
local infos, running = {}, 0
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '(' .. NOW, '+inf')) do
  infos[#infos + 1] = redis.call('HGET', INFO, worker) or '{}'
  running = running + #redis.call('HKEYS', S .. 'running:' .. worker)
end
local queued = redis.call('ZCARD', WAITING) + redis.call('ZCARD', DELAYED)
return {queued, int(oldest), NOW, infos, redis.call('HGETALL', ABOUT), running, redis.call('ZCARD', SCHEDULED)}
