-- What is asked of the ledger: no job's state changes here. A part of ledger.lua, which names the keys.

-- Bytes of partial outputs that one call reads, about.
local MAX_HEARD = 4194304

-- Partial outputs after a number, and whether there are more: as many as asked for, or fewer where they are large.
local function hear_partial(key, after, most)
  local found, bytes, count = {}, 0, 1
  while #found < most do
    if bytes > MAX_HEARD then return found, true end
    local page = redis.call('XRANGE', key, '(' .. after, '+', 'COUNT', math.min(count, most - #found))
    if #page == 0 then break end
    for _, entry in ipairs(page) do
      found[#found + 1], bytes, after = entry, bytes + #entry[2][8], entry[1]
    end
    count = 2 * count
  end
  return found, false
end

-- id, number of the last event that is known, most. Gives {status, started, finished, attempt, {number, name, run, attempt,
-- data, ...}, 1 where more events follow, else 0} with up to so many of the events that follow, or nothing for an unknown
-- job; from now on, the job's changes are told on jobs:told. Reading both in one step, nothing that a job said can come to light after its end.
function operations.hear()
  local id, most = ARGV[4], tonumber(ARGV[6])
  local job = redis.call('HMGET', record(id), 'status', 'started', 'finished', 'attempt', 'events', 'watched')
  if not job[1] then return nil end
  if not job[6] and (job[1] == 'queued' or job[1] == 'running') then redis.call('HSET', record(id), 'watched', 1) end
  local found, more = {}, 0
  if tonumber(job[5] or 0) > tonumber(ARGV[5]) then
    local places, outputs, is_cut = {1, 1}, hear_partial(partial(id), ARGV[5], most)
    local lists = {redis.call('XRANGE', said(id), '(' .. ARGV[5], '+', 'COUNT', most), outputs}
    while true do
      local one, other = lists[1][places[1]], lists[2][places[2]]
      if #found >= 5 * most or (is_cut and not other) then
        more = 1
        break
      end
      if not (one or other) then break end
      local function number(entry) return entry and tonumber(entry[1]:match('^%d+')) or math.huge end
      local from = number(one) < number(other) and 1 or 2
      local entry = from == 1 and one or other
      places[from] = places[from] + 1
      found[#found + 1] = int(number(entry))
      for field = 2, 8, 2 do found[#found + 1] = entry[2][field] end
    end
  end
  return {job[1], job[2] or '0', job[3] or '0', job[4], found, more}
end

-- status ("" : any), before_us, before_id, most, look, API key ("": any). Newest first: {us and id of the last one looked at, or ""
-- where there are no more, {id, ...}}. It looks at no more than `look` records, so a page may be short.
function operations.list()
  local status, bound, last_id, most, look = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
  local found, skip, seen, last_us, index = {}, 0, 0, '', ARGV[9] ~= '' and owned(ARGV[9]) or INDEX
  while true do
    local page = redis.call('ZREVRANGEBYSCORE', index, bound, '-inf', 'WITHSCORES', 'LIMIT', skip, 100)
    for i = 1, #page, 2 do
      local id, us = page[i], page[i + 1]
      local passed = us == ARGV[5] and id >= ARGV[6]
      if not passed then
        if #found == most or seen == look then return {last_us, last_id, found} end
        local state = redis.call('HGET', record(id), 'status')
        seen, last_us, last_id = seen + 1, us, id
        if state and (status == '' or status == state) then found[#found + 1] = id end
      end
    end
    if #page < 200 then return {'', '', found} end
    skip = skip + 100
  end
end

-- Gives {depth, since when the oldest of the ten jobs that are next waits (0: none), now, {info of a live worker, ...}, about,
-- how many jobs (and chunks of batches) run, how many queued jobs are not due yet}
function operations.overview()
  local oldest = 0
  for _, id in ipairs(redis.call('ZRANGE', WAITING, 0, 9)) do
    local job = redis.call('HMGET', record(id), 'created', 'not_before')
    local since = math.max(tonumber(job[1] or now), tonumber(job[2] or 0))
    if oldest == 0 or since < oldest then oldest = since end
  end
  local live = redis.call('ZRANGEBYSCORE', WORKERS, '(' .. string.format('%.0f', now), '+inf')
  local infos, running = {}, 0
  for _, worker in ipairs(live) do
    infos[#infos + 1] = redis.call('HGET', INFO, worker) or '{}'
    running = running + #redis.call('HKEYS', S .. 'running:' .. worker)
  end
  return {redis.call('ZCARD', WAITING) + redis.call('ZCARD', DELAYED), string.format('%.0f', oldest), string.format('%.0f', now), infos,
    redis.call('HGETALL', ABOUT), running, redis.call('ZCARD', SCHEDULED)}
end

-- From what forecast.py tells when a queued job will start. Gives {now, knobs (JSON), batch_time, row_time (or empty),
-- {info of a live worker, ...}, {what busy holds of each of their processes, ...}, {number of a chunk that waits, among all of
-- them (from 0), its place in the queue, its rows, ...}}: of the first, the last, and some between.
function operations.forecast()
  local about = redis.call('HMGET', ABOUT, 'knobs', 'batch_time', 'row_time')
  local infos, runs, found = {}, {}, {}
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '(' .. NOW, '+inf')) do
    infos[#infos + 1] = redis.call('HGET', INFO, worker) or '{}'
    for _, run in ipairs(redis.call('HVALS', busy(worker))) do runs[#runs + 1] = run end
  end
  local chunks = redis.call('ZCARD', CHUNKS)
  local samples = math.min(chunks, SAMPLES)
  for i = 0, samples - 1 do
    local number = math.floor(i * (chunks - 1) / math.max(1, samples - 1))
    local id = redis.call('ZRANGE', CHUNKS, number, number)[1]
    local place = redis.call('ZRANK', WAITING, id)
    if place then
      found[#found + 1], found[#found + 2], found[#found + 3] = number, place, tonumber(redis.call('HGET', record(id), 'rows'))
    end
  end
  return {NOW, about[1] or '', about[2] or '', about[3] or '', infos, runs, found}
end
