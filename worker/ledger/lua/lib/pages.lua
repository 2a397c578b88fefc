-- Operations on all chunks of a batch go page by page, so that none of them holds up Redis. The API asks for page after page
-- (advance); where it has ended in the midst, the sweeps do.
--@ include "lib/batches" "lib/bells" "lib/cancel_job" "lib/room" "lib/turns"

-- The chunks of a page that have rows to be run again, {id, rows, the time before which it does not run or nothing}, and the
-- bytes of their inputs.
local function find_unfinished(group, first, last)
  local unfinished, bytes = {}, 0
  for i = first, last do
    local id = group .. '.' .. i
    local status, rows, bad, finished, stopping = unpack(redis.call('HMGET', record(id),
      'status', 'rows', 'bad', 'finished', 'stopping'))
    local again = status == 'succeeded' and tonumber(bad or 0) or tonumber(rows)
    if again > 0 then
      unfinished[#unfinished + 1] = {id, again, stopping and finished + RUN_ENDS_US, i}
      bytes = bytes + redis.call('HSTRLEN', record(id), 'input')
    end
  end
  return unfinished, bytes
end

local function queue_chunk(id, rows, not_before, score, turn)
  local key = record(id)
  local attempt = redis.call('HGET', key, 'attempt')
  redis.call('HDEL', key, 'worker', 'token', 'started', 'finished', 'expires', 'batch_size', 'error', 'timings', 'stopping',
    'turn', 'why', 'bad', 'uncharged')
  redis.call('HSET', key, 'status', 'queued', 'rows', rows, 'created', NOW, 'score', score, 'alone', 1, 'base', attempt,
    'retried', attempt)
  if turn then redis.call('HSET', key, 'turn', int(turn)) end
  weigh(id, 1)
  if not_before and not_before > now then  -- its cancelled run may not have ended yet
    redis.call('ZADD', DELAYED, not_before, id)
  else
    redis.call('ZADD', WAITING, score, id)
    redis.call('ZADD', CHUNKS, score, id)
  end
end

-- The chunks of a page that have nothing to run again are open no longer.
local function retry_page(group, first, last, offset, unfinished)
  local batch_key = batch_of(group)
  local owner, priority, begun = unpack(redis.call('HMGET', batch_key, 'owner', 'priority', 'begun'))
  local fair = read_turns()
  for _, chunk in ipairs(unfinished) do
    local id, rows, not_before, i = unpack(chunk)
    local turn, stretched = take_turn(fair, owner or '', priority, rows, offset)
    queue_chunk(id, rows, not_before, int((turn or begun + i) + stretched), turn)
  end
  if #unfinished > 0 then redis.call('LPUSH', service, OURS .. ':1}') end
  close_chunks(group, last - first + 1 - #unfinished)
end

-- The chunks of a batch that has ended are kept as long as its record.
local function expire_page(group, first, last)
  local left_ms = math.max(1, math.ceil((redis.call('HGET', batch_of(group), 'expires') - now) / 1000))
  for i = first, last do redis.call('PEXPIRE', record(group .. '.' .. i), left_ms) end
end

-- Does a page of the kind "cancel", "retry" or "expire"; false where a retry waits for room in the queue.
local function do_page(kind, group, first, last, offset, stopped)
  if kind == 'cancel' then
    for i = first, last do cancel_job(group .. '.' .. i, true) end
  elseif kind == 'expire' then
    expire_page(group, first, last)
  else
    local unfinished, bytes = find_unfinished(group, first, last)
    if first > 0 and not stopped and #unfinished > 0 and has_no_room(bytes) then return false end
    retry_page(group, first, last, offset, unfinished)
  end
  return true
end

-- Gives 1 where further pages follow, 2 where they wait for room in the queue, else 0.
local function advance(group)
  local kind, first, offset = (redis.call('HGET', PAGES, group) or ''):match('^(%a+) (%d+) (%S+)$')
  local chunks, stopped = unpack(redis.call('HMGET', batch_of(group), 'chunks', 'stopped'))
  if not (kind and chunks) then
    redis.call('HDEL', PAGES, group)
    return 0
  end
  first, chunks = tonumber(first), tonumber(chunks)
  local last = math.min(first + PAGE, chunks) - 1
  if not do_page(kind, group, first, last, tonumber(offset), stopped) then return 2 end
  if kind ~= 'expire' and redis.call('HGET', batch_of(group), 'finished') then  -- end_batch has noted the rest
    return redis.call('HGET', PAGES, group) and 1 or 0
  elseif last + 1 < chunks then
    redis.call('HSET', PAGES, group, kind .. ' ' .. int(last + 1) .. ' ' .. offset)
    return 1
  elseif kind == 'retry' and stopped then  -- it was cancelled meanwhile
    redis.call('HSET', PAGES, group, 'cancel 0 0')
    return 1
  end
  redis.call('HDEL', PAGES, group)
  return 0
end
