-- Writes the terminal state of a job. lib/finish calls it, and then settles the jobs that equal the ended one.
--@ include "base/celery" "lib/chunk_end" "lib/history" "base/keys_of_queue" "base/owners" "lib/transitions"

-- A longer output (or error) is left out of the message on jobs:ended.
local MAX_PUBLISHED = 16384

-- The fields of a job's record that its end needs; a caller may read further fields after these in the same command.
local END_FIELDS = {
  'status', 'worker', 'group', 'rows', 'started', 'keep', 'cache',
  'idempotency', 'start_within', 'webhook', 'events', 'owner', 'awaited', 'celery',  -- 8 to 14
}

-- The end of a job, as the keys beside its record and the producers outside the ledger see it.
local function release_job(id, job, status, value, expires, keep_ms, seen_ms)
  local promise, start_within, webhook, events, owner, _, celery = unpack(job, 8, #END_FIELDS)
  local key = record(id)
  tally('ended:' .. status, 1)
  redis.call('PEXPIRE', key, keep_ms)
  redis.call('SET', seen(id), owner or '1', 'PX', seen_ms)
  if promise then redis.call('PEXPIRE', promise_of(promise), keep_ms) end
  if start_within then gather('ZREM', DEADLINES, id) end
  if events then
    redis.call('PEXPIRE', said(id), keep_ms)
    redis.call('PEXPIRE', partial(id), keep_ms)
  end
  gather('ZADD', EXPIRES, expires, id)
  if owner then gather('ZADD', OWNED_EXPIRES, expires, owner .. ':' .. id) end
  if celery then write_celery_result(id, status, value, keep_ms) end
  if webhook then announce('job', id, key, webhook, 'job.' .. status) end
end

-- job: the fields END_FIELDS of its record; value: the output or the error, a JSON text; timings and batch_size: of its run,
-- if it had one; failed: the rows of a chunk that failed, as keep_failed reads them.
local function write_end(id, job, status, value, timings, batch_size, failed)
  local was, worker, group, rows, started, keep, _, _, _, _, events, owner, awaited = unpack(job, 1, #END_FIELDS)
  local key = record(id)
  must_go(id, was, status)
  if owner then add_open(owner, -(rows or 1)) end
  if was == 'queued' then
    weigh(id, -1)
    gather('ZREM', WAITING, id)
    gather('ZREM', DELAYED, id)
    gather('ZREM', SCHEDULED, id)
    if group then gather('ZREM', CHUNKS, id) end
  elseif status ~= 'succeeded' then
    note_attempt(id, status, true, status == 'failed' and value)
  end
  local expires, keep_ms, seen_ms = lifetime(keep)
  local fields = {'status', status, 'finished', NOW, 'expires', expires}
  if value then
    fields[7], fields[8] = status == 'succeeded' and 'output' or 'error', value
  end
  if timings then
    local n = #fields
    fields[n + 1], fields[n + 2], fields[n + 3], fields[n + 4] = 'timings', timings, 'batch_size', batch_size
  end
  redis.call('HSET', key, unpack(fields))
  if awaited and timings and not events and #value <= MAX_PUBLISHED then
    local version, attempt = unpack(redis.call('HMGET', key, 'version', 'attempt'))
    ended[#ended + 1] = {id, version, attempt, started, NOW, expires, status, value, timings, batch_size}
  else
    ended[#ended + 1] = id
  end
  if worker then gather('HDEL', S .. 'running:' .. worker, id) end
  if not group then return release_job(id, job, status, value, expires, keep_ms, seen_ms) end
  if was == 'running' then count(group, 'running', -rows) end
  end_chunk(status, group, tonumber(rows), keep_failed(key, status, failed))
end
