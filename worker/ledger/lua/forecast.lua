-- forecast: reads from which forecast.py estimates when a queued job will start.
--
-- Answer: {now, knobs (JSON), batch_time, row_time (or empty), {info of a live worker, …}, {value of S:busy for each of their
--   processes, …}, {number of a chunk among all queued chunks (from 0), its place in the queue, its rows, …}}: the first
--   chunk, the last, and some between.
-- It only reads.
--@ include "base/keys_of_queue" "base/keys_of_workers" "base/numbers" "lib/tokens"

-- Chunks whose places it looks up.
local SAMPLES = 16

local knobs, batch_time, row_time = unpack(redis.call('HMGET', ABOUT, 'knobs', 'batch_time', 'row_time'))
local infos, runs, places = {}, {}, {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '(' .. NOW, '+inf')) do
  infos[#infos + 1] = redis.call('HGET', INFO, worker) or '{}'
  for _, run in ipairs(redis.call('HVALS', busy_key(worker))) do runs[#runs + 1] = run end
end
local chunks = redis.call('ZCARD', CHUNKS)
local samples = math.min(chunks, SAMPLES)
for i = 0, samples - 1 do
  local number = math.floor(i * (chunks - 1) / math.max(1, samples - 1))
  local id = redis.call('ZRANGE', CHUNKS, number, number)[1]
  local place = redis.call('ZRANK', WAITING, id)
  if place then
    local n = #places
    places[n + 1], places[n + 2], places[n + 3] = number, place, tonumber(redis.call('HGET', record(id), 'rows'))
  end
end
return {NOW, knobs or '', batch_time or '', row_time or '', infos, runs, places}
