-- The job ledger: every change of a job's state happens in here, each call atomic.
--
-- This file names the keys and has what all share: how a job ends, is queued and takes its turn. The operations are in
-- parts, at the end (scripts.py puts them there): jobs.lua and batches.lua (clients), runs.lua (pool processes),
-- leases.lua (workers), reads.lua; and in between cache.lua.
--
-- KEYS[1] the service's name, which is also its Celery queue (a list of messages).
-- ARGV    operation, remember_us, date (RFC 3339, for Celery's results; after "all " where a new job's is kept wherever it
--         comes from; empty in a Redis Cluster, where Celery's own keys lie on other nodes and are left alone), then the
--         operation's own.
--
-- Keys. S is "{<service>}", a hash tag, so that all keys of one service share a slot of a Redis Cluster with its list.
--   <service>            list   Celery messages; ours only say that a job waits, others' carry a job not yet adopted
--   S:job:<id>           hash   the record of one job; lives keep_for after its end; with "body" (sha256) where the client
--                               made the id; "takes": see cache.lua
--   S:batch:<id>         hash   one POST /batches; its chunks are jobs <id>.0, <id>.1, ... with "group", "rows" (how many)
--                               and "first" (the first one's number); they are in no index and live as long as the batch.
--                               One with rows that failed keeps those as its "input", with their "numbers" and how many they
--                               are ("bad"); retry_batch makes them its "rows", beside the "output" that it has. "partial":
--                               the lines of a chunk that waits for its rest to be run. Results of a chunk over 8 MB are
--                               in parts, fields "<series>.<number>" numbered from 1, each a value of its own so that no
--                               call is large: "so_far" ("<series> <how many>") says which stand before "partial", "out"
--                               which before "output", "merged" which a retry's results are merged into until it ends. A
--                               series that "out" names is never written again
--   S:seen:<id>          string says that the job was, from its end on: its API key, else 1; lives remember_for longer than
--                               the record (410 rather than 404). S:seen:batch:<id>: the same of a batch, from its beginning
--   S:revoked:<id>       string says that Celery's revoke named a job that is not known (yet); lives remember_for
--   S:idempotency:<sha256> string a client's Idempotency-Key (hashed): "<job> <sha256 of the body>"; lives as long as the job
--   S:said:<id>          stream what a job said in its runs: the last of its "progress" and "log" events, each under its number
--   S:partial:<id>       stream its partial outputs, every one, numbered together with those. Both are there only where the
--                               job said something; they live as long as its record, whose "events" is the last number
--   S:waiting            zset   queued jobs by urgency (created, or its turn, + the priority's offset)
--   S:chunks             zset   those of them that are chunks, by which a forecast finds them
--   S:delayed            zset   queued jobs that may not run yet (a retry's pause), by when they may
--   S:scheduled          zset   queued jobs whose "not_before" has not come, by it; until then, their "score" is counted from it
--   S:index              zset   every kept job by the time of its creation
--   S:expires            zset   finished jobs by the time at which their record is dropped
--   S:owned:<key>        zset   every kept job of an API key ("owner" in the record) by the time of its creation
--   S:owned:expires      zset   finished jobs of API keys, "<key>:<job>", by the time at which their record is dropped
--   S:open               hash   API key -> how many of its jobs (of a batch: rows) are queued or running
--   S:turns              hash   "<API key> <priority>" -> the turn of its next job; only while jobs of API keys wait
--   S:deadlines          zset   unfinished jobs with start_within or finish_within, by the next of the two
--   S:workers            zset   live workers by the time at which their lease lapses
--   S:workers:info       hash   worker -> JSON: host, pid, state
--   S:running:<worker>   hash   job -> token of the batch in which this worker runs it
--   S:busy:<worker>      hash   pool process -> "<since> <rows> <ahead>": since when it runs the batch that it runs (or ended
--                               its last one, until it has asked for the next); rows: of a chunk, else 0; ahead: not 0 but the
--                               number of another one where it has claimed that and will run it before it claims again
--   S:taken:<worker>     hash   others' messages that this worker took and has not yet adopted, each by "<pool process> ..."
--   S:cancels:<worker>   set    "<token> <job>": running jobs of this worker that were cancelled
--   S:about              hash   what the last worker told of the service: version, knobs, limits, cache_for (us), model
--                               (what stands for version and knobs in the cache's keys), failure; and what
--                               is counted: waiting_bytes (inputs of queued jobs), rate (jobs ended a second), rate_at,
--                               pace (microseconds that a pool process takes for an input), batch_time and row_time (the
--                               same for a batch of jobs, and for a row of a chunk: "<mean> <weight> <when>"), turn (of the
--                               job claimed last), parked (queued jobs that wait for an equal one; see cache.lua, which has
--                               keys of its own);
--                               and since ever: ended:<status> (jobs), inputs:<status> (of batches),
--                               requeued:<why> (attempts after which a job was queued again), reused (results)
--   S:outbox             stream ends of jobs and batches with a webhook, each with the record as it ended (webhooks.py)
--   S:swept              string the time of the last sweep
--   celery-task-meta-<id> string the result as stock Celery writes it, of a job with "celery": one that came as a Celery
--                               message, or any where SERVICES_CELERY_RESULTS=all; lives as long as the record
--   services:schema      hash   number and version: by which schema all this is written, and who said so (schema.py)
--   services             set    every service that ever had a job or a worker; written by ledger.py, as no slot is its own
-- Channel jobs:ended: a JSON array of what has just ended: each its id or, of a job whose client waits for it ("awaited") and
--                     that said nothing, {id, version, attempt, started, finished, expires, status, output or error,
--                     timings, batch_size}, so that nobody has to read its record.
-- Channel jobs:told: the ids of jobs that said something, and of jobs with "watched" that began to run or are queued again,
-- and of batches with "watched" whose counts are others.
--
-- All times are microseconds by Redis's own clock, so that no host's clock matters.

local service = KEYS[1]
local S = '{' .. service .. '}:'
local WAITING, INDEX, EXPIRES, DEADLINES = S .. 'waiting', S .. 'index', S .. 'expires', S .. 'deadlines'
local WORKERS, INFO, ABOUT, DELAYED = S .. 'workers', S .. 'workers:info', S .. 'about', S .. 'delayed'
local OPEN, TURNS, OWNED_EXPIRES, CHUNKS = S .. 'open', S .. 'turns', S .. 'owned:expires', S .. 'chunks'
local SCHEDULED = S .. 'scheduled'

local operation, remember, date = ARGV[1], tonumber(ARGV[2]), ARGV[3]:match('%S*$')
local KEEPS_ALL = ARGV[3]:sub(1, 4) == 'all '
local FIRST = 4
local HAS_CELERYS_KEYS = date ~= ''

-- Our own messages start like this (dispatch.py); nothing inside another producer's message can forge it.
local OURS = '{"libs_service"'
-- kombu's lists for the priorities 0, 3, 6 and 9 (0 is the most urgent), joined by its separator.
local QUEUES = HAS_CELERYS_KEYS
  and {service, service .. '\6\0223', service .. '\6\0226', service .. '\6\0229'} or {service}
-- The same table as TRANSITIONS in jobs.py; a test holds them equal.
local TRANSITIONS = {
  queued = {running = true, cancelled = true, expired = true, failed = true},
  running = {succeeded = true, failed = true, cancelled = true, queued = true},
  failed = {queued = true}, cancelled = {queued = true}, expired = {queued = true},  -- by retry alone
}

-- Inputs that may wait where no worker has told the service's own max_queue_bytes yet.
local DEFAULT_MAX_BYTES = 1073741824
-- Bytes of a job's history; the oldest attempts are forgotten first.
local MAX_HISTORY = 32768
-- A cancelled run is ended within this time: a retry must not overlap with it.
local RUN_ENDS_US = 4000000
-- The longest pause before a further attempt.
local MAX_PAUSE_US = 300000000
-- A longer output (or error) is left out of what jobs:ended tells.
local MAX_TOLD = 16384
-- The same of what a webhook tells.
local MAX_EVENT_VALUE = 262144
-- Two sweeps for dead workers are at least this far apart, however many workers there are.
local SWEEP_US = 400000
-- The rate of ended jobs is averaged over this time.
local RATE_S = 10
-- The pace is averaged over about so many inputs; what it is taken for before any has run.
local PACE_INPUTS, DEFAULT_PACE_US = 256, 1000
-- Of a chunk that is claimed while the one before computes, the longest run.
local AHEAD_US = 250000
-- The time of a batch, and of a row of a chunk, is averaged over about so many runs, or over so long where that is more.
local MEAN_RUNS, MEAN_US = 20, 10000000
-- Chunks of which a forecast looks up the places.
local SAMPLES = 16
-- What an input takes of the virtual time by which API keys share a service.
local STEP_US = 1000

local ended = {}
local told = {}
local bytes_change = 0  -- of the inputs that wait
local reused = 0  -- jobs that this call has ended with another's output
local counted = {}  -- fields of ABOUT -> what this call adds: one command each, however many jobs

-- Entries that the jobs of one call add to, or take out of, the same key: sent as one command for all of them. A command
-- of its own for each costs a claim and a completion of 64 jobs a third of their time (measured).
local gathered = {}

-- Nothing reads the key before this.
local function flush()
  for _, call in ipairs(gathered) do
    if #call > 2 then redis.call(unpack(call)) end
  end
  gathered = {}
end

-- ``second`` may be nil.
local function gather(command, key, first, second)
  local name = command .. key
  local call = gathered[name]
  if not call or #call > 1000 then
    call = {command, key}
    gathered[name] = call
    gathered[#gathered + 1] = call
  end
  call[#call + 1] = first
  if second then call[#call + 1] = second end
end

local function tally(field, number) counted[field] = (counted[field] or 0) + number end

local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

local now = clock()

local function record(id) return S .. 'job:' .. id end
local function seen(id) return S .. 'seen:' .. id end
local function revoked(id) return S .. 'revoked:' .. id end
local function said(id) return S .. 'said:' .. id end
local function partial(id) return S .. 'partial:' .. id end
local function promised(hash) return S .. 'idempotency:' .. hash end

local function int(number) return string.format('%.0f', number) end

-- Redis writes a Lua number with 17 digits, at the cost of a command: whole batches share these texts.
local NOW = int(now)
local terms = {}

-- keep_us. Texts: when the record of a job that ends now is dropped, and the milliseconds until it and its "seen" are.
local function term(keep)
  local found = terms[keep]
  if not found then
    local ms = math.max(1, math.floor(keep / 1000))
    found = {int(now + keep), int(ms), int(ms + math.floor(remember / 1000))}
    terms[keep] = found
  end
  return found
end

local function owned(owner) return S .. 'owned:' .. owner end

local function batch_of(group) return S .. 'batch:' .. group end

-- The rows of a chunk that are in this state, in its batch; nothing for a job that is no chunk.
local function count(group, field, rows)
  if group then redis.call('HINCRBY', batch_of(group), field, rows) end
end

-- A batch's counts are others: told where somebody listens, once a call.
local looked_at = {}
local function tell_of(group)
  if looked_at[group] then return end
  looked_at[group] = true
  if redis.call('HGET', batch_of(group), 'watched') then told[#told + 1] = group end
end

local function weigh(id, sign) bytes_change = bytes_change + sign * redis.call('HSTRLEN', record(id), 'input') end

local function must_go(id, from, to)
  if not (TRANSITIONS[from] and TRANSITIONS[from][to]) then
    error('job ' .. id .. ' cannot go from ' .. tostring(from) .. ' to ' .. to)
  end
end

-- An API key has so many more, or fewer, jobs that have not ended.
local function open(owner, jobs)
  if redis.call('HINCRBY', OPEN, owner, jobs) <= 0 then redis.call('HDEL', OPEN, owner) end
end

local function error_json(code, message, retryable)
  return cjson.encode({code = code, message = message, retryable = retryable})
end

-- What stock Celery's Redis backend would have stored, and the channel on which it would have told.
local function tell_celery(id, status, value, keep_ms)
  if not HAS_CELERYS_KEYS then return end
  local state, result = 'SUCCESS', value
  if status == 'failed' then
    local problem = cjson.decode(value)
    local class = ('_' .. problem.code):gsub('_(%l)', string.upper)
    state = 'FAILURE'
    result = cjson.encode({exc_type = class, exc_message = {problem.message}, exc_module = 'worker.errors'})
  elseif status ~= 'succeeded' then
    state = 'REVOKED'
    result = cjson.encode({exc_type = 'TaskRevokedError', exc_message = {status}, exc_module = 'celery.exceptions'})
  end
  local meta = '{"status":"' .. state .. '","result":' .. result .. ',"traceback":null,"children":[],"date_done":"'
    .. date .. '","task_id":' .. cjson.encode(id) .. '}'
  redis.call('SET', 'celery-task-meta-' .. id, meta, 'PX', keep_ms)
  redis.call('PUBLISH', 'celery-task-meta-' .. id, meta)
end

-- One line for an attempt that did not succeed: what GET /jobs/<id>?include=attempts shows.
local function note(id, outcome, charged, problem)
  local key = record(id)
  local job = redis.call('HMGET', key, 'attempt', 'started', 'worker', 'token', 'batch_size', 'version', 'history')
  local line = '{"attempt":' .. job[1] .. ',"outcome":"' .. outcome .. '","charged":' .. tostring(charged)
    .. ',"started_us":' .. (job[2] or '0') .. ',"ended_us":' .. int(now) .. ',"worker":' .. cjson.encode(job[3] or '')
    .. ',"batch":' .. cjson.encode(job[4] or '') .. ',"batch_size":' .. (job[5] or 'null')
    .. ',"version":' .. cjson.encode(job[6] or '') .. ',"error":' .. (problem or 'null') .. '}'
  local history = job[7] and (job[7] .. '\n' .. line) or line
  while #history > MAX_HISTORY and history:find('\n', 1, true) do
    history = history:sub(history:find('\n', 1, true) + 1)
  end
  redis.call('HSET', key, 'history', history)
end

-- The end of a job or batch with a webhook goes to the outbox in the step that writes it, with the record as it stands:
-- whatever becomes of that, the end is told as it was.
local function announce(kind, id, key, webhook, event)
  local events = cjson.decode(webhook).events
  for i, wanted in ipairs(events or {event}) do
    if wanted == event then break end
    if i == #events then return end
  end
  local told = {}
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if field ~= 'input' and field ~= 'history' and redis.call('HSTRLEN', key, field) <= MAX_EVENT_VALUE then
      told[#told + 1] = field
      told[#told + 1] = redis.call('HGET', key, field)
    end
  end
  redis.call('XADD', S .. 'outbox', '*', 'kind', kind, 'id', id, 'type', event, 'record', cjson.encode(told))
end

-- One chunk of a batch has ended; with the last one, the batch has. A chunk that succeeded may have rows that failed.
local function end_chunk(status, group, rows, failed)
  if status == 'succeeded' then
    count(group, 'succeeded', rows - failed)
    count(group, 'failed', failed)
    tally('inputs:succeeded', rows - failed)
    if failed > 0 then tally('inputs:failed', failed) end
  else
    local each = status == 'failed' and 'failed' or 'cancelled'
    count(group, each, rows)
    tally('inputs:' .. each, rows)
  end
  local key = batch_of(group)
  tell_of(group)
  if redis.call('HINCRBY', key, 'open', -1) > 0 then return end
  local batch = redis.call('HMGET', key, 'keep', 'chunks', 'idempotency', 'webhook')
  local life = term(batch[1])
  redis.call('HSET', key, 'finished', NOW, 'expires', life[1])
  if batch[4] then announce('batch', group, key, batch[4], 'batch.finished') end
  redis.call('PEXPIRE', key, life[2])
  redis.call('PEXPIRE', seen('batch:' .. group), life[3])
  if batch[3] then redis.call('PEXPIRE', promised(batch[3]), life[2]) end
  for i = 0, batch[2] - 1 do redis.call('PEXPIRE', record(group .. '.' .. i), life[2]) end
  ended[#ended + 1] = group
end

-- Forgets parts of a chunk's results (see S:job:<id>): those that this field of its record counts.
local function drop_parts(key, field)
  local series, parts = (redis.call('HGET', key, field) or ''):match('^(%d+) (%d+)$')
  if not series then return end
  for i = 1, parts do redis.call('HDEL', key, series .. '.' .. i) end
  redis.call('HDEL', key, field)
end

-- What retry_batch would run again stays: of a chunk that succeeded the rows that failed ("<number>,<number>...", then a
-- line for each; empty: none did), of any other all that it was to run. Gives how many failed.
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

-- The only way into a terminal state, but for what an end is to jobs that equal this one (finish_job). ``job``: the
-- fields JOB of its record; ``value``: the output or the error, a JSON text; timings and batch_size are those of its run,
-- if it had one; failed: the rows of a chunk that failed, as keep_failed reads them.
local JOB = {
  'status', 'worker', 'keep', 'idempotency', 'group', 'rows', 'start_within', 'webhook', 'events', 'owner', 'started',
  'awaited', 'cache', 'celery',
}

local function write_end(id, job, status, value, timings, batch_size, failed)
  local key = record(id)
  must_go(id, job[1], status)
  if job[10] then open(job[10], -(job[6] or 1)) end
  if job[1] == 'queued' then
    weigh(id, -1)
    gather('ZREM', WAITING, id)
    gather('ZREM', DELAYED, id)
    gather('ZREM', SCHEDULED, id)
    if job[5] then gather('ZREM', CHUNKS, id) end
  elseif status ~= 'succeeded' then
    note(id, status, true, status == 'failed' and value)
  end
  local life = term(job[3])
  local fields = {'status', status, 'finished', NOW, 'expires', life[1]}
  if value then
    fields[7], fields[8] = status == 'succeeded' and 'output' or 'error', value
  end
  if timings then
    fields[#fields + 1], fields[#fields + 2] = 'timings', timings
    fields[#fields + 1], fields[#fields + 2] = 'batch_size', batch_size
  end
  redis.call('HSET', key, unpack(fields))
  if job[12] and timings and not job[9] and #value <= MAX_TOLD then
    local run = redis.call('HMGET', key, 'version', 'attempt')
    ended[#ended + 1] = {id, run[1], run[2], job[11], NOW, life[1], status, value, timings, batch_size}
  else
    ended[#ended + 1] = id
  end
  if job[2] then gather('HDEL', S .. 'running:' .. job[2], id) end
  if job[5] then
    if job[1] == 'running' then count(job[5], 'running', -job[6]) end
    return end_chunk(status, job[5], tonumber(job[6]), keep_failed(key, status, failed))
  end
  tally('ended:' .. status, 1)
  redis.call('PEXPIRE', key, life[2])
  redis.call('SET', seen(id), job[10] or '1', 'PX', life[3])
  if job[4] then redis.call('PEXPIRE', promised(job[4]), life[2]) end
  if job[7] then gather('ZREM', DEADLINES, id) end
  if job[9] then
    redis.call('PEXPIRE', said(id), life[2])
    redis.call('PEXPIRE', partial(id), life[2])
  end
  gather('ZADD', EXPIRES, life[1], id)
  if job[10] then gather('ZADD', OWNED_EXPIRES, life[1], job[10] .. ':' .. id) end
  if job[14] then tell_celery(id, status, value, life[2]) end
  if job[8] then announce('job', id, key, job[8], 'job.' .. status) end
end

local function bell(id) return OURS .. ':1,"id":' .. cjson.encode(id) .. '}' end

local function ring(id) redis.call('LPUSH', service, bell(id)) end

-- Fair sharing between API keys (start-time fair queueing). While jobs of keys wait, a job's place is counted from its
-- turn, not from its creation: behind the job claimed last, or, if that is later, where the same key's jobs of this
-- priority before it end; each input takes STEP_US of this virtual time. So the next job of one key stands beside the
-- next of another's million. Virtual time begins as the clock's, and has a speed of its own: an input's step in the
-- time that it takes (its pace), by which a priority's head start is stretched, so that a job moves up as it ages.
-- (With n keys that all have a backlog it goes n times slower.) Jobs that belong to no key have turns together. Where
-- no key's jobs wait there are no turns.
local function turns()
  local about = redis.call('HMGET', ABOUT, 'turn', 'pace')
  return {last = tonumber(about[1]), pace = tonumber(about[2] or DEFAULT_PACE_US)}
end

-- The turn of a new job with so many inputs, and its head start stretched; nothing, and the head start as it is, where
-- its creation counts.
local function take_turn(fair, owner, priority, inputs, offset)
  if owner == '' and not fair.last then return nil, offset end
  fair.last = fair.last or now
  fair.speed = fair.speed or STEP_US * math.max(1, redis.call('ZCARD', WORKERS)) / fair.pace
  local line = owner .. ' ' .. priority
  local turn = math.max(fair.last, tonumber(redis.call('HGET', TURNS, line) or 0))
  redis.call('HSET', TURNS, line, turn + inputs * STEP_US)
  if turn == fair.last then  -- the next newcomer stands behind this one
    fair.last = turn + 1
    redis.call('HSET', ABOUT, 'turn', fair.last)
  end
  return turn, math.floor(offset * fair.speed)
end

local function nothing_waits() return redis.call('ZCARD', WAITING) + redis.call('ZCARD', DELAYED) == 0 end

local function end_turns()
  redis.call('HDEL', ABOUT, 'turn')
  redis.call('DEL', TURNS)
end

-- A job with this turn was the last to be claimed.
local function pass_turn(turn)
  if nothing_waits() then end_turns() else redis.call('HSET', ABOUT, 'turn', turn + 1) end
end

-- The score of a job whose turn had come before. Turns may have begun anew since, at an earlier time.
local function not_later(key, score, turn)
  local last = tonumber(redis.call('HGET', ABOUT, 'turn') or now)
  if tonumber(turn) <= last then return score end
  score = score - (turn - last)
  redis.call('HSET', key, 'score', score, 'turn', last)
  return score
end

-- What a key has used of turns that are over no longer counts.
local function forget_turns()
  local last = tonumber(redis.call('HGET', ABOUT, 'turn'))
  if not last then return end
  if nothing_waits() then return end_turns() end
  local lines = redis.call('HGETALL', TURNS)
  for i = 1, #lines, 2 do
    local owner = lines[i]:match('^(%S*) ')
    if tonumber(lines[i + 1]) <= last and not redis.call('HGET', OPEN, owner) then redis.call('HDEL', TURNS, lines[i]) end
  end
end

-- The pool process that claimed under this token.
local function process_of(token) return token:match('^(.*)%.%d+$') or token end
-- The number that it gave this batch, from 0.
local function number_of(token) return tonumber(token:match('%.(%d+)$') or 0) end

local function busy(worker) return S .. 'busy:' .. worker end

-- A process has ended a run of so many inputs: of a chunk with so many rows, or (0) of as many jobs. It began when it was
-- claimed, or, where that was done ahead, when the run before it ended. The mean time of a batch is weighted by its jobs: what
-- is asked for is how long those take that are as full as a queue makes them.
local function measure(worker, token, inputs, rows, claimed)
  local process, field = process_of(token), rows > 0 and 'row_time' or 'batch_time'
  local since, ahead = (redis.call('HGET', busy(worker), process) or ''):match('^(%S+) %S+ (%S+)$')
  local us = math.max(1, now - math.max(tonumber(since or 0), tonumber(claimed)))
  local about = redis.call('HMGET', ABOUT, 'pace', field)
  local pace = tonumber(about[1] or us / inputs)
  pace = pace + inputs / (inputs + PACE_INPUTS) * (us / inputs - pace)
  local mean, weight = (about[2] or '0 0'):match('^(%S+) (%S+)')
  weight = weight * (1 - math.min(1 / MEAN_RUNS, us / MEAN_US)) + inputs
  mean = mean + inputs / weight * ((rows > 0 and us / rows or us) - mean)
  redis.call('HSET', ABOUT, 'pace', int(math.max(1, pace)), field, string.format('%.3f %.3f %.0f', mean, weight, now))
  if tonumber(ahead or 0) <= number_of(token) + 1 then ahead = 0 end  -- that one runs now
  redis.call('HSET', busy(worker), process, NOW .. ' ' .. int(rows) .. ' ' .. ahead)
end

--@ cache.lua

local function finish_job(id, job, status, value, timings, batch_size, failed)
  write_end(id, job, status, value, timings, batch_size, failed)
  if job[13] then cache().ended(id, job[13], job[1], status, value, job[3]) end
end

local function finish(id, status, value)
  finish_job(id, redis.call('HMGET', record(id), unpack(JOB)), status, value)
end

-- A queued job may run; group: of a chunk.
local function enqueue(id, score, wish, group)
  if group then redis.call('ZADD', CHUNKS, score, id) end
  if not wish then
    redis.call('ZADD', WAITING, score, id)
    ring(id)
  elseif cache().join(id, wish, score) then
    ring(id)
  end
end

-- Back to the queue, with the place that its age gives it; at once, or after a pause. No outcome: it had not begun.
local function put_back(id, outcome, charged, alone, pause, problem)
  local key = record(id)
  local job = redis.call('HMGET', key, 'status', 'worker', 'score', 'group', 'rows', 'created', 'watched', 'turn', 'cache')
  must_go(id, job[1], 'queued')
  local score = tonumber(job[3])
  if job[8] then
    score = not_later(key, score, job[8])
  elseif tonumber(job[6]) > now then
    score = now + score - job[6]  -- stored while the clock was ahead
  end
  if outcome then note(id, outcome, charged, problem) end
  if job[4] then
    count(job[4], 'running', -job[5])
    tell_of(job[4])
    redis.call('HSET', key, 'why', outcome)
    alone = true
  end
  weigh(id, 1)
  if outcome then tally('requeued:' .. outcome, 1) end
  gather('HDEL', S .. 'running:' .. job[2], id)
  redis.call('HSET', key, 'status', 'queued', 'alone', alone and 1 or 0)
  redis.call('HDEL', key, 'worker', 'token', 'started', 'batch_size', 'progress')
  if job[7] then told[#told + 1] = id end
  if not charged then redis.call('HINCRBY', key, 'attempt', -1) end
  if job[9] then cache().stop(id, job[9]) end
  if pause > 0 then
    redis.call('ZADD', DELAYED, now + pause, id)
  else
    enqueue(id, score, job[9], job[4])
  end
end

-- A running job whose end did not come from its run: its worker stops that within RUN_ENDS_US.
local function stop_run(id, worker)
  redis.call('SADD', S .. 'cancels:' .. worker, redis.call('HGET', record(id), 'token') .. ' ' .. id)
  redis.call('HSET', record(id), 'stopping', 1)
end

-- A job past a deadline; true where that ended it.
local function end_if_late(id, start_by, finish_by, status)
  if start_by > 0 and start_by <= now and status == 'queued' and not cache().has_begun(id) then
    finish(id, 'expired')
    return true
  elseif finish_by > 0 and finish_by <= now then
    if status == 'running' then stop_run(id, redis.call('HGET', record(id), 'worker')) end
    finish(id, 'failed', error_json('timed_out', 'not finished within finish_within_s', true))
    return true
  end
  return false
end

local function next_deadline(start_by, finish_by)
  if start_by > 0 and finish_by > 0 then return math.min(start_by, finish_by) end
  return math.max(start_by, finish_by)
end

-- Jobs ended a second, now.
local function rate()
  local about = redis.call('HMGET', ABOUT, 'rate', 'rate_at')
  if not about[1] then return 0 end
  return tonumber(about[1]) * math.exp(-(now - tonumber(about[2])) / (RATE_S * 1000000))
end

-- Whether so many further bytes find no place, and if so in how many seconds there will be some: the time in which a
-- tenth of the queue is worked off at the measured rate.
local function full(waiting, waiting_bytes, bytes, limits)
  local most, most_bytes = tonumber(limits[1] or 0), tonumber(limits[2] or DEFAULT_MAX_BYTES)
  local many = most > 0 and waiting >= most
  if not many and (most_bytes == 0 or waiting_bytes + bytes <= most_bytes) then return nil end
  local speed = rate()
  if speed < 0.01 then return 60 end
  return math.max(1, math.min(60, math.ceil((waiting / 10 + 1) / speed)))
end

-- The same of inputs with so many bytes in all, as the queue stands; later: they do not wait in it yet.
local function has_no_room(bytes, later)
  local limits = redis.call('HMGET', ABOUT, 'max_queue_size', 'max_queue_bytes', 'waiting_bytes', 'parked')
  local waiting = redis.call('ZCARD', WAITING) + redis.call('ZCARD', DELAYED) + (limits[4] or 0)
  return full(later and 0 or waiting, tonumber(limits[3] or 0), bytes, limits)
end

-- Whether an API key that may have so many jobs open ('': any number) has no room for so many more.
local function limited(owner, jobs, most)
  return most ~= '' and tonumber(redis.call('HGET', OPEN, owner) or 0) + jobs > tonumber(most)
end

-- Seconds until the next job ends, at the measured rate.
local function soon()
  local speed = rate()
  return speed < 0.01 and 10 or math.max(1, math.min(60, math.ceil(1 / speed)))
end

local operations = {}

--@ jobs.lua
--@ batches.lua
--@ runs.lua
--@ leases.lua
--@ reads.lua

-- Every call.

-- A full Redis (maxmemory) refuses to store new jobs, but must never refuse to end those that it has: after one write
-- that needs no memory, a script may go on (script.c, scriptVerifyOOM).
if operation ~= 'create' and operation ~= 'list' and operation ~= 'overview' and operation ~= 'forecast' then
  redis.call('DEL', S .. 'none')
end

local reply = operations[operation]()
flush()
if bytes_change ~= 0 then tally('waiting_bytes', bytes_change) end
for field, number in pairs(counted) do redis.call('HINCRBY', ABOUT, field, number) end
if #ended > 0 then
  redis.call('PUBLISH', 'jobs:ended', cjson.encode(ended))
  if operation == 'complete' then redis.call('HSET', ABOUT, 'rate', rate() + (#ended - reused) / RATE_S, 'rate_at', now) end
end
if #told > 0 then redis.call('PUBLISH', 'jobs:told', cjson.encode(told)) end
return reply
