-- The end of a chunk, and of its batch.
--@ include "lib/batches" "base/keys_of_jobs" "lib/lifetimes" "lib/parts" "lib/webhooks"

-- Keeps the rows that retry_batch would run again. For a chunk that succeeded these are the rows that failed: ``failed`` is
-- "<number>,<number>…" followed by a line for each row, or empty. For any other chunk they are all rows that it was to run.
-- Gives the number of failed rows of a chunk that succeeded.
local function keep_failed(key, status, failed)
  if status ~= 'succeeded' then
    redis.call('HDEL', key, 'partial')
    drop_parts(key, 'so_far')
    drop_parts(key, 'merged')
    return 0
  end
  local numbers, lines = failed:match('^([%d,]+)\n(.*)$')
  if not numbers then
    redis.call('HDEL', key, 'input', 'partial', 'numbers', 'bad')
    return 0
  end
  local bad = select(2, numbers:gsub(',', '')) + 1
  redis.call('HDEL', key, 'partial')
  redis.call('HSET', key, 'input', lines, 'numbers', numbers, 'bad', bad)
  return bad
end

-- The last chunk of a batch has ended.
local function end_batch(group)
  local batch_key = batch_of(group)
  local keep, chunks, promise, webhook = unpack(redis.call('HMGET', batch_key, 'keep', 'chunks', 'idempotency', 'webhook'))
  local expires, keep_ms, seen_ms = lifetime(keep)
  redis.call('HSET', batch_key, 'finished', NOW, 'expires', expires)
  if webhook then announce('batch', group, batch_key, webhook, 'batch.finished') end
  redis.call('PEXPIRE', batch_key, keep_ms)
  redis.call('PEXPIRE', seen('batch:' .. group), seen_ms)
  if promise then redis.call('PEXPIRE', promise_of(promise), keep_ms) end
  if tonumber(chunks) > PAGE then
    redis.call('HSET', PAGES, group, 'expire 0 0')
  else
    redis.call('HDEL', PAGES, group)
    for i = 0, chunks - 1 do redis.call('PEXPIRE', record(group .. '.' .. i), keep_ms) end
  end
  ended[#ended + 1] = group
end

-- This many chunks are open no longer.
local function close_chunks(group, chunks)
  if redis.call('HINCRBY', batch_of(group), 'open', 0 - chunks) <= 0 then end_batch(group) end
end

-- A chunk of this many rows has ended; a chunk that succeeded may have failed rows.
local function end_chunk(status, group, rows, failed)
  if status == 'succeeded' then
    count(group, 'succeeded', rows - failed)
    count(group, 'failed', failed)
    tally('inputs:succeeded', rows - failed)
    if failed > 0 then tally('inputs:failed', failed) end
  else
    local outcome = status == 'failed' and 'failed' or 'cancelled'
    count(group, outcome, rows)
    tally('inputs:' .. outcome, rows)
  end
  report_batch(group)
  close_chunks(group, 1)
end
