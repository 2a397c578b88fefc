-- The job ledger: every change of a job's state happens in here, each call atomic.
--
-- KEYS[1] the service's name, which is also its Celery queue (a list of messages).
-- ARGV    operation, remember_us, date (RFC 3339, for Celery's results; empty in a Redis Cluster, where Celery's own keys
--         lie on other nodes and are left alone), then the operation's own.
--
-- Keys. S is "{<service>}", a hash tag, so that all keys of one service share a slot of a Redis Cluster with its list.
--   <service>            list   Celery messages; ours only say that a job waits, others' carry a job not yet adopted
--   S:job:<id>           hash   the record of one job; lives keep_for after its end; with "body" (sha256) where the client
--                               made the id
--   S:batch:<id>         hash   one POST /batches; its chunks are jobs <id>.0, <id>.1, ... with "group", "rows" (how many)
--                               and "first" (the first one's number); they are in no index and live as long as the batch.
--                               One with rows that failed keeps those as its "input", with their "numbers" and how many they
--                               are ("bad"); retry_batch makes them its "rows", beside the "output" that it has
--   S:seen:<id>          string says that the job was, from its end on: its API key, else 1; lives remember_for longer than
--                               the record (410 rather than 404). S:seen:batch:<id>: the same of a batch, from its beginning
--   S:idempotency:<sha256> string a client's Idempotency-Key (hashed): "<job> <sha256 of the body>"; lives as long as the job
--   S:said:<id>          stream what a job said in its runs: the last of its "progress" and "log" events, each under its number
--   S:partial:<id>       stream its partial outputs, every one, numbered together with those. Both are there only where the
--                               job said something; they live as long as its record, whose "events" is the last number
--   S:waiting            zset   queued jobs by urgency (created, or its turn, + the priority's offset)
--   S:chunks             zset   those of them that are chunks, by which a forecast finds them
--   S:delayed            zset   queued jobs that may not run yet (a retry's pause), by when they may
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
--                               its last one, until it has asked for the next); rows: of a chunk, else 0; ahead: 1 where it
--                               has claimed another one and will run that, too, before it claims again
--   S:taken:<worker>     hash   others' messages that this worker took and has not yet adopted
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
--   celery-task-meta-<id> string the result as stock Celery writes it; lives as long as the record
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

local operation, remember, date = ARGV[1], tonumber(ARGV[2]), ARGV[3]
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
  local fields, told = redis.call('HGETALL', key), {}
  for i = 1, #fields, 2 do
    if fields[i] ~= 'input' and fields[i] ~= 'history' and #fields[i + 1] <= MAX_EVENT_VALUE then
      told[#told + 1] = fields[i]
      told[#told + 1] = fields[i + 1]
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

-- What retry_batch would run again stays: of a chunk that succeeded the rows that failed ("<number>,<number>...", then a
-- line for each; empty: none did), of any other all that it was to run. Gives how many failed.
local function keep_failed(key, status, failed)
  if status ~= 'succeeded' then
    redis.call('HDEL', key, 'partial')
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
  'awaited', 'cache',
}

local function write_end(id, job, status, value, timings, batch_size, failed)
  local key = record(id)
  must_go(id, job[1], status)
  if job[10] then open(job[10], -(job[6] or 1)) end
  if job[1] == 'queued' then
    weigh(id, -1)
    gather('ZREM', WAITING, id)
    gather('ZREM', DELAYED, id)
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
  tell_celery(id, status, value, life[2])
  if job[8] then announce('job', id, key, job[8], 'job.' .. status) end
end

local function ring(id)
  redis.call('LPUSH', service, OURS .. ':1,"id":' .. cjson.encode(id) .. '}')
end

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

local function busy(worker) return S .. 'busy:' .. worker end

-- A process has ended a run of so many inputs: of a chunk with so many rows, or (0) of as many jobs. It began when it was
-- claimed, or, where that was done ahead, when the run before it ended. The mean time of a batch is weighted by its jobs: what
-- is asked for is how long those take that are as full as a queue makes them.
local function measure(worker, token, inputs, rows, claimed)
  local process, field = process_of(token), rows > 0 and 'row_time' or 'batch_time'
  local since = (redis.call('HGET', busy(worker), process) or ''):match('^%S+')
  local us = math.max(1, now - math.max(tonumber(since or 0), tonumber(claimed)))
  local about = redis.call('HMGET', ABOUT, 'pace', field)
  local pace = tonumber(about[1] or us / inputs)
  pace = pace + inputs / (inputs + PACE_INPUTS) * (us / inputs - pace)
  local mean, weight = (about[2] or '0 0'):match('^(%S+) (%S+)')
  weight = weight * (1 - math.min(1 / MEAN_RUNS, us / MEAN_US)) + inputs
  mean = mean + inputs / weight * ((rows > 0 and us / rows or us) - mean)
  redis.call('HSET', ABOUT, 'pace', int(math.max(1, pace)), field, string.format('%.3f %.3f %.0f', mean, weight, now))
  redis.call('HSET', busy(worker), process, NOW .. ' ' .. int(rows) .. ' 0')
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

-- The same of inputs with so many bytes in all, as the queue stands.
local function has_no_room(bytes)
  local limits = redis.call('HMGET', ABOUT, 'max_queue_size', 'max_queue_bytes', 'waiting_bytes', 'parked')
  local waiting = redis.call('ZCARD', WAITING) + redis.call('ZCARD', DELAYED) + (limits[4] or 0)
  return full(waiting, tonumber(limits[3] or 0), bytes, limits)
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

-- Per job: id, version, priority, offset_us, start_within_us, finish_within_us, keep_us, metadata, input, message
-- (empty: the job came as another producer's message and needs no other), error (empty, or why it failed at once),
-- sha256 of its idempotency key (empty: none), sha256 of its body (with no key: the id is the client's own, which is then
-- as good as a key), webhook (JSON; empty: none), API key that it belongs to (empty: none), most jobs that the key may have
-- open (empty: any number), 1 where its client waits for its end (else empty), what it asks of the cache (see cache().wish).
-- Gives per job: state, created, position; the state is "queued", "cached" (it has ended already, with another's output),
-- "full" or "limited" (created: seconds after which to try again), "same" or "conflict" (created: the id of the job that
-- has this key or id, with the same body or another), or "gone" (a job that had this id was dropped). Last, for how long
-- the service keeps results for others (or nothing).
function operations.create()
  local limits = redis.call('HMGET', ABOUT, 'max_queue_size', 'max_queue_bytes', 'waiting_bytes', 'parked', 'version',
    'model', 'cache_for')
  local waiting_bytes = tonumber(limits[3] or 0)
  local waiting = redis.call('ZCARD', WAITING) + redis.call('ZCARD', DELAYED) + (limits[4] or 0)
  local reply, fair, parked = {}, turns(), {}
  for i = FIRST, #ARGV, 18 do
    local id, message, promise, owner = ARGV[i], ARGV[i + 9], ARGV[i + 11], ARGV[i + 14]
    local key = record(id)
    local known = redis.call('HGET', key, 'created')
    local state, created = 'queued', known or (now + #reply)
    local earlier, body = (promise ~= '' and redis.call('GET', promised(promise)) or ''):match('^(%S+) (%S+)$')
    if earlier and earlier ~= id then
      state, created = body == ARGV[i + 12] and 'same' or 'conflict', earlier
      known = true
    end
    local own = promise == '' and ARGV[i + 12] or ''
    if own ~= '' and known then
      state, created = redis.call('HGET', key, 'body') == own and 'same' or 'conflict', id
    elseif own ~= '' and redis.call('EXISTS', seen(id)) == 1 then
      state, created, known = 'gone', id, true
    end
    local wish = not known and ARGV[i + 17] ~= ''
      and cache().wish(ARGV[i + 17], ARGV[i + 1], limits[5], limits[6], limits[7])
    local found = wish and cache().find(wish)
    local again = not known and not found and message ~= '' and full(waiting, waiting_bytes + bytes_change, #ARGV[i + 8], limits)
    if again then
      state, created = 'full', again
    elseif not known and not found and limited(owner, 1, ARGV[i + 15]) then
      state, created = 'limited', soon()
    elseif not known then
      local start_within, finish_within = tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5])
      local start_by = start_within > 0 and now + start_within or 0
      local finish_by = finish_within > 0 and now + finish_within or 0
      local turn, offset = nil, ARGV[i + 3]
      if not found then
        local inputs = wish and cache().has_equals(wish) and 0 or 1
        turn, offset = take_turn(fair, owner, ARGV[i + 2], inputs, offset)
      end
      local score = int((turn or created) + offset)
      created = int(created)
      redis.call('HSET', key, 'service', service, 'version', ARGV[i + 1], 'status', 'queued', 'priority', ARGV[i + 2],
        'attempt', '0', 'created', created, 'score', score, 'keep', ARGV[i + 6], 'input', ARGV[i + 8])
      if ARGV[i + 7] ~= '{}' then redis.call('HSET', key, 'metadata', ARGV[i + 7]) end
      if promise ~= '' then
        redis.call('SET', promised(promise), id .. ' ' .. ARGV[i + 12])
        redis.call('HSET', key, 'idempotency', promise)
      end
      if ARGV[i + 13] ~= '' then redis.call('HSET', key, 'webhook', ARGV[i + 13]) end
      if own ~= '' then redis.call('HSET', key, 'body', own) end
      if ARGV[i + 16] ~= '' then redis.call('HSET', key, 'awaited', 1) end
      if turn then redis.call('HSET', key, 'turn', int(turn)) end
      if owner ~= '' then
        redis.call('HSET', key, 'owner', owner)
        gather('ZADD', owned(owner), created, id)
        open(owner, 1)
      end
      if start_by + finish_by > 0 then
        redis.call('HSET', key, 'start_within', start_within, 'finish_within', finish_within, 'start_by', int(start_by),
          'finish_by', int(finish_by))
      end
      bytes_change = bytes_change + #ARGV[i + 8]
      gather('ZADD', INDEX, created, id)
      local deadline = next_deadline(start_by, finish_by)
      if deadline > 0 then gather('ZADD', DEADLINES, deadline, id) end
      if wish then redis.call('HSET', key, 'cache', wish) end
      if found then
        state = 'cached'
        flush()
        cache().take_over(id, found[1], found[2])
      else
        if not wish then gather('ZADD', WAITING, score, id) elseif not cache().join(id, wish, score) then parked[id] = wish end
        if message ~= '' and not parked[id] then gather('LPUSH', service, message) end
        waiting = waiting + 1
      end
      if ARGV[i + 10] ~= '' then
        flush()
        finish(id, 'failed', ARGV[i + 10])
      end
    end
    reply[#reply + 1] = state
    reply[#reply + 1] = type(created) == 'number' and int(created) or created
    reply[#reply + 1] = id
  end
  flush()
  for i = 3, #reply, 3 do
    local wish = parked[reply[i]]
    reply[i] = redis.call('ZRANK', WAITING, reply[i]) or (wish and cache().place(wish)) or -1
  end
  reply[#reply + 1] = limits[7] or ''
  return reply
end

-- Others' messages wait for their adoption under the worker's name, so that its death cannot lose one.
local function take_messages(worker, most)
  local foreign = {}
  for _, queue in ipairs(QUEUES) do
    local messages = redis.call('RPOP', queue, most)
    for i, message in ipairs(messages or {}) do
      if message:sub(1, #OURS) ~= OURS then
        local field = string.format('%.0f', now) .. ':' .. queue .. ':' .. i
        redis.call('HSET', S .. 'taken:' .. worker, field, message)
        foreign[#foreign + 1] = field
        foreign[#foreign + 1] = message
      end
    end
  end
  return foreign
end

-- How long a batch that is not full is still held back for more; 0: not at all.
local function hold(ids, most, delay)
  if delay == 0 or #ids == 0 or #ids >= most then return 0 end
  local oldest = now
  for _, id in ipairs(ids) do
    oldest = math.min(oldest, tonumber(redis.call('HGET', record(id), 'created') or now))
  end
  return math.max(0, oldest + delay - now)
end

-- How many of so many waiting jobs make a batch of the largest size that the author prefers (Triton's
-- preferred_batch_size); 0 where none can be reached.
local function preferred(waiting, sizes)
  local best = 0
  for size in sizes:gmatch('%d+') do
    size = tonumber(size)
    if size <= waiting and size > best then best = size end
  end
  return best
end

-- What the run of a claimed job needs, in this order; "first" is a chunk's.
local RUN = {'attempt', 'input', 'first'}

local TAKEN = {'attempt', 'input', 'first', 'watched', 'cache'}

local function append(list, id, attempt, input, first)
  local n = #list
  list[n + 1], list[n + 2], list[n + 3], list[n + 4] = id, attempt, input, first
end

-- Gives what claim does of each, and the rows of a chunk (else 0).
local function take(ids, worker, token, max_attempts, version, model)
  local batch = {}
  for _, id in ipairs(ids) do
    local job = redis.call('HMGET', record(id), 'status', 'start_by', 'finish_by', 'alone', 'group', 'rows', 'turn',
      unpack(TAKEN))
    if not job[1] then
      gather('ZREM', WAITING, id)  -- its record was deleted by hand
      gather('ZREM', CHUNKS, id)
    elseif not end_if_late(id, tonumber(job[2] or 0), tonumber(job[3] or 0), job[1]) then
      -- A job whose batch died is run alone, so that only the culprit is charged.
      if job[4] == '1' and #batch > 0 then break end
      must_go(id, job[1], 'running')
      batch[#batch + 1] = {id, job}
      if job[4] == '1' then break end
    end
  end
  local reply, size, turn, rows = {}, int(#batch), nil, 0
  for _, taken in ipairs(batch) do
    local id, job = taken[1], taken[2]
    local group, attempt, input = job[5], int(job[8] + 1), job[9] or 'null'
    if group then
      count(group, 'running', job[6])
      tell_of(group)
      gather('ZREM', CHUNKS, id)
      rows = job[6]
    end
    bytes_change = bytes_change - #input
    gather('ZREM', WAITING, id)
    gather('HSET', S .. 'running:' .. worker, id, token)
    if job[12] then cache().lead(id, job[12], model) end
    -- A chunk gets one attempt more, in which the row that ended the others is passed over.
    redis.call('HSET', record(id), 'status', 'running', 'worker', worker, 'token', token, 'started', NOW, 'attempt', attempt,
      'max_attempts', group and int(max_attempts + 1) or max_attempts, 'version', version, 'batch_size', size)
    if job[2] then redis.call('HSET', record(id), 'start_by', '0') end  -- it has started in time, however often it runs
    if job[11] then told[#told + 1] = id end
    turn = job[7] or turn
    append(reply, id, attempt, input, job[10] or '')
  end
  flush()
  if turn then pass_turn(turn) end
  return reply, rows
end

-- Whether a process has a batch in hand, among the tokens of its worker's.
local function is_at_work(tokens, process)
  for token in pairs(tokens) do
    if process_of(token) == process then return true end
  end
  return false
end

-- worker, token, most, delay_us, max_attempts, version, preferred sizes ("8,16"), model. Gives {"fenced"},
-- {"foreign", {field, message, ...}}, {"hold", us} or {"batch", {id, attempt, input, first (of a chunk, else ""), ...}, how
-- many wait} (no id: nothing waits). Sent twice with one token, it gives the same batch.
function operations.claim()
  local worker, token, most = ARGV[4], ARGV[5], tonumber(ARGV[6])
  if not redis.call('ZSCORE', WORKERS, worker) then return {'fenced'} end
  local mine = redis.call('HGETALL', S .. 'running:' .. worker)
  local again, tokens = {}, {}
  for i = 1, #mine, 2 do
    tokens[mine[i + 1]] = true
    if mine[i + 1] == token then
      local job = redis.call('HMGET', record(mine[i]), unpack(RUN))
      append(again, mine[i], job[1], job[2] or 'null', job[3] or '')
    end
  end
  if #again > 0 then return {'batch', again, redis.call('ZCARD', WAITING)} end
  local foreign = take_messages(worker, most)
  if #foreign > 0 then return {'foreign', foreign} end
  local process, batch, rows = process_of(token), {}, 0
  local is_ahead = is_at_work(tokens, process)
  while #batch == 0 do
    local ids = redis.call('ZRANGE', WAITING, 0, most - 1)
    if #ids == 0 then break end
    local size = preferred(#ids, ARGV[10])
    local wait = size == 0 and hold(ids, most, tonumber(ARGV[7])) or 0
    if wait > 0 then
      if not is_ahead then redis.call('HDEL', busy(worker), process) end
      return {'hold', wait}
    end
    if size > 0 then ids = redis.call('ZRANGE', WAITING, 0, size - 1) end
    batch, rows = take(ids, worker, token, ARGV[8], ARGV[9], ARGV[11])
  end
  local left = redis.call('ZCARD', WAITING)
  if not is_ahead and #batch > 0 then
    redis.call('HSET', busy(worker), process, NOW .. ' ' .. int(rows) .. ' 0')
  elseif not is_ahead then
    redis.call('HDEL', busy(worker), process)
  elseif #batch > 0 and left < most then  -- feeder.py looks ahead only where a whole batch waits
    local run = (redis.call('HGET', busy(worker), process) or ''):match('^%S+ %S+')
    if run then redis.call('HSET', busy(worker), process, run .. ' 1') end
  end
  return {'batch', batch, left}
end

-- worker, fields of S:taken:<worker> whose messages are jobs of the ledger now
function operations.adopted()
  redis.call('HDEL', S .. 'taken:' .. ARGV[4], unpack(ARGV, 5))
end

-- token, then per job: id, status, output or error, timings, batch_size, pause_us (0: this end is final; else a failed
-- job is run again after the pause, as long as it has attempts left), rows of a chunk that failed (see keep_failed). Gives
-- for each 1 where it stands as told, 2 where it will be run again, 0 where it is no longer this batch's (cancelled, or run
-- elsewhere since): the fence against a late worker.
local ENDING = {'token', 'attempt', 'base', 'max_attempts', unpack(JOB)}

function operations.complete()
  local token, reply, inputs, last = ARGV[4], {}, 0, nil
  for i = 5, #ARGV, 7 do
    local id, status = ARGV[i], ARGV[i + 1]
    local job = redis.call('HMGET', record(id), unpack(ENDING))
    local mine, told = job[1] == token, 1
    if mine and job[5] == 'running' then
      inputs, last = inputs + (job[10] or 1), job
      local pause = tonumber(ARGV[i + 5])
      if pause > 0 and job[2] - (job[3] or 0) < tonumber(job[4]) then
        put_back(id, 'failed', true, false, pause, ARGV[i + 2])
        told = 2
      else
        finish_job(id, {select(5, unpack(job, 1, #ENDING))}, status, ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 6])
      end
    end
    reply[#reply + 1] = (mine and (job[5] == 'running' or job[5] == status)) and told or 0
  end
  if last then measure(last[6], token, inputs, tonumber(last[10] or 0), last[15]) end
  return reply
end

-- token, pause_us, ids of the token's jobs that have not begun: they wait so long, and it costs them no attempt
function operations.postpone()
  for i = 6, #ARGV do
    local job = redis.call('HMGET', record(ARGV[i]), 'token', 'status')
    if job[1] == ARGV[4] and job[2] == 'running' then put_back(ARGV[i], nil, false, false, tonumber(ARGV[5])) end
  end
end

-- token, id, results so far (lines). A chunk that is run row by row has come so far: 1, or 0 where it is no longer this
-- token's. What was lost before is no longer held against it.
function operations.progress()
  local key = record(ARGV[5])
  local job = redis.call('HMGET', key, 'token', 'status', 'attempt')
  if job[1] ~= ARGV[4] or job[2] ~= 'running' then return 0 end
  redis.call('HSET', key, 'partial', ARGV[6], 'base', job[3] - 1)
  return 1
end

-- token, most "progress" and "log" events to keep, then per job: id, how many events, and for each its number within this
-- run of the job (from 1), its name, its data (JSON) and the progress that it tells (or empty). What is here already is
-- passed over, and so is all of a job that is no longer this token's or has ended.
function operations.say()
  local token, most, i = ARGV[4], ARGV[5], 6
  while i <= #ARGV do
    local id, past = ARGV[i], i + 2 + 4 * ARGV[i + 1]
    local key = record(id)
    local job = redis.call('HMGET', key, 'token', 'status', 'started', 'attempt', 'events', 'said_by', 'said')
    if job[1] == token and job[2] == 'running' then
      local number, heard = tonumber(job[5] or 0), job[6] == token and tonumber(job[7]) or 0
      for event = i + 2, past - 1, 4 do
        if tonumber(ARGV[event]) > heard then
          number, heard = number + 1, tonumber(ARGV[event])
          local name, data, progress = ARGV[event + 1], ARGV[event + 2], ARGV[event + 3]
          local entry = {int(number), 'name', name, 'run', job[3], 'attempt', job[4], 'data', data}
          if name == 'output' then
            redis.call('XADD', partial(id), unpack(entry))
          elseif most ~= '0' then
            redis.call('XADD', said(id), 'MAXLEN', most, unpack(entry))
          end
          if progress ~= '' then redis.call('HSET', key, 'progress', progress) end
        end
      end
      redis.call('HSET', key, 'events', int(number), 'said_by', token, 'said', int(heard))
      told[#told + 1] = id
    end
    i = past
  end
end

-- id, number of the last event that is known, most. Gives {status, started, finished, attempt, {number, name, run, attempt,
-- data, ...}} with up to so many of the events that follow, or nothing for an unknown job; from now on, the job's changes
-- are told on jobs:told. Reading both in one step, nothing that a job said can come to light after its end.
function operations.hear()
  local id, most = ARGV[4], tonumber(ARGV[6])
  local job = redis.call('HMGET', record(id), 'status', 'started', 'finished', 'attempt', 'events', 'watched')
  if not job[1] then return nil end
  if not job[6] and (job[1] == 'queued' or job[1] == 'running') then redis.call('HSET', record(id), 'watched', 1) end
  local found = {}
  if tonumber(job[5] or 0) > tonumber(ARGV[5]) then
    local lists, places = {}, {1, 1}
    for i, key in ipairs({said(id), partial(id)}) do
      lists[i] = redis.call('XRANGE', key, '(' .. ARGV[5], '+', 'COUNT', most)
    end
    while #found < 5 * most do
      local one, other = lists[1][places[1]], lists[2][places[2]]
      if not (one or other) then break end
      local function number(entry) return entry and tonumber(entry[1]:match('^%d+')) or math.huge end
      local from = number(one) < number(other) and 1 or 2
      local entry = from == 1 and one or other
      places[from] = places[from] + 1
      found[#found + 1] = int(number(entry))
      for field = 2, 8, 2 do found[#found + 1] = entry[2][field] end
    end
  end
  return {job[1], job[2] or '0', job[3] or '0', job[4], found}
end

-- chunk's id, group, first, rows, lines, ttl_us: one chunk of a batch that is still on its way
function operations.stage()
  local key = record(ARGV[4])
  redis.call('HSET', key, 'group', ARGV[5], 'first', ARGV[6], 'rows', ARGV[7], 'input', ARGV[8])
  redis.call('PEXPIRE', key, math.floor(ARGV[9] / 1000))
end

-- group, chunks: a batch that will not come is forgotten
function operations.discard()
  if redis.call('EXISTS', batch_of(ARGV[4])) == 1 then return end
  for i = 0, ARGV[5] - 1 do redis.call('DEL', record(ARGV[4] .. '.' .. i)) end
end

-- group, version, priority, offset_us, keep_us, metadata, rows, chunks, bytes, message, sha256 of the idempotency key,
-- of the body, webhook (JSON; empty: none), API key, most jobs that the key may have open: all chunks are there, so the
-- batch is accepted. Gives {state, detail} as create does, or {"gone"} where a chunk was too long on its way.
function operations.seal()
  local group, chunks, promise, owner = ARGV[4], tonumber(ARGV[11]), ARGV[14], ARGV[17]
  local key = batch_of(group)
  if redis.call('EXISTS', key) == 1 then return {'queued', ''} end
  if promise ~= '' then
    local earlier, body = (redis.call('GET', promised(promise)) or ''):match('^(%S+) (%S+)$')
    if earlier then return {body == ARGV[15] and 'same' or 'conflict', earlier} end
  end
  local again = has_no_room(tonumber(ARGV[12]))
  if again then return {'full', int(again)} end
  if limited(owner, ARGV[10], ARGV[18]) then return {'limited', int(soon())} end
  for i = 0, chunks - 1 do
    if redis.call('EXISTS', record(group .. '.' .. i)) == 0 then return {'gone', ''} end
  end
  redis.call('HSET', key, 'service', service, 'version', ARGV[5], 'priority', ARGV[6], 'keep', ARGV[8], 'metadata', ARGV[9],
    'rows', ARGV[10], 'chunks', chunks, 'open', chunks, 'created', now)
  if ARGV[16] ~= '' then redis.call('HSET', key, 'webhook', ARGV[16]) end
  redis.call('SET', seen('batch:' .. group), owner ~= '' and owner or 1)
  if owner ~= '' then
    redis.call('HSET', key, 'owner', owner)
    open(owner, ARGV[10])
  end
  if promise ~= '' then
    redis.call('SET', promised(promise), group .. ' ' .. ARGV[15])
    redis.call('HSET', key, 'idempotency', promise)
  end
  local fair = turns()
  for i = 0, chunks - 1 do
    local id = group .. '.' .. i
    local turn, offset = take_turn(fair, owner, ARGV[6], redis.call('HGET', record(id), 'rows'), ARGV[7])
    local score = int((turn or now + i) + offset)
    redis.call('HSET', record(id), 'service', service, 'version', ARGV[5], 'status', 'queued', 'priority', ARGV[6],
      'attempt', 0, 'created', NOW, 'score', score, 'keep', ARGV[8], 'alone', 1)
    if turn then redis.call('HSET', record(id), 'turn', int(turn)) end
    if owner ~= '' then redis.call('HSET', record(id), 'owner', owner) end
    redis.call('PERSIST', record(id))
    redis.call('ZADD', WAITING, score, id)
    redis.call('ZADD', CHUNKS, score, id)
    weigh(id, 1)
  end
  redis.call('LPUSH', service, ARGV[13])
  return {'queued', ''}
end

-- group. Cancels what has not ended; gives 1, 0 where the batch had ended, or nothing for an unknown one.
function operations.cancel_batch()
  local batch = redis.call('HMGET', batch_of(ARGV[4]), 'chunks', 'finished')
  if not batch[1] then return nil end
  if batch[2] then return 0 end
  redis.call('HSET', batch_of(ARGV[4]), 'stopped', 1)
  for i = 0, batch[1] - 1 do
    local id = ARGV[4] .. '.' .. i
    local job = redis.call('HMGET', record(id), 'status', 'worker')
    if job[1] == 'running' then stop_run(id, job[2]) end
    if job[1] == 'queued' or job[1] == 'running' then finish(id, 'cancelled') end
  end
  return 1
end

-- group, token of this request, offset_us, message, most jobs that its API key may have open (empty: any number). Runs again,
-- in a batch that has ended, what failed or was cancelled; each chunk keeps its id and what has succeeded. Gives {state,
-- detail}: "queued" (also when it is said again), "full" or "limited" (seconds after which to try again), "open" (it has not
-- ended), "none" (every row succeeded), or nothing for an unknown batch.
function operations.retry_batch()
  local group, key = ARGV[4], batch_of(ARGV[4])
  local batch = redis.call('HMGET', key, 'chunks', 'finished', 'failed', 'cancelled', 'owner', 'priority', 'idempotency', 'retry')
  if not batch[1] then return nil end
  if batch[8] == ARGV[5] then return {'queued', ''} end
  if not batch[2] then return {'open', ''} end
  local rows, owner = (batch[3] or 0) + (batch[4] or 0), batch[5] or ''
  if rows == 0 then return {'none', ''} end
  local chunks, bytes = {}, 0
  for i = 0, batch[1] - 1 do
    local id = group .. '.' .. i
    local job = redis.call('HMGET', record(id), 'status', 'rows', 'bad', 'finished', 'stopping')
    local again = job[1] == 'succeeded' and tonumber(job[3] or 0) or tonumber(job[2])
    if again > 0 then
      chunks[#chunks + 1] = {id, again, job[5] and job[4] + RUN_ENDS_US}
      bytes = bytes + redis.call('HSTRLEN', record(id), 'input')
    end
  end
  local later = has_no_room(bytes)
  if later then return {'full', int(later)} end
  if limited(owner, rows, ARGV[8]) then return {'limited', int(soon())} end
  redis.call('HSET', key, 'retry', ARGV[5], 'begun', NOW, 'open', #chunks, 'failed', 0, 'cancelled', 0)
  redis.call('HDEL', key, 'finished', 'expires', 'stopped')
  redis.call('PERSIST', key)
  redis.call('PERSIST', seen('batch:' .. group))
  if batch[7] then redis.call('PERSIST', promised(batch[7])) end
  for i = 0, batch[1] - 1 do redis.call('PERSIST', record(group .. '.' .. i)) end
  if owner ~= '' then open(owner, rows) end
  local fair = turns()
  for i, chunk in ipairs(chunks) do
    local id, again, not_before = unpack(chunk)
    local turn, offset = take_turn(fair, owner, batch[6], again, ARGV[6])
    local score = int((turn or now + i) + offset)
    redis.call('HDEL', record(id), 'worker', 'token', 'started', 'finished', 'expires', 'batch_size', 'error', 'timings',
      'stopping', 'turn', 'why', 'bad')
    redis.call('HSET', record(id), 'status', 'queued', 'rows', again, 'created', NOW, 'score', score, 'alone', 1)
    local attempt = redis.call('HGET', record(id), 'attempt')
    redis.call('HSET', record(id), 'base', attempt, 'retried', attempt)
    if turn then redis.call('HSET', record(id), 'turn', int(turn)) end
    weigh(id, 1)
    if not_before and not_before > now then  -- its cancelled run may not have ended yet
      redis.call('ZADD', DELAYED, not_before, id)
    else
      redis.call('ZADD', WAITING, score, id)
      redis.call('ZADD', CHUNKS, score, id)
    end
  end
  redis.call('LPUSH', service, ARGV[7])
  tell_of(group)
  return {'queued', ''}
end

-- group. Gives its record, or nothing for an unknown batch; from now on, its changes are told on jobs:told.
function operations.hear_batch()
  local key = batch_of(ARGV[4])
  local batch = redis.call('HMGET', key, 'created', 'watched')
  if not batch[1] then return nil end
  if not batch[2] then redis.call('HSET', key, 'watched', 1) end
  return redis.call('HGETALL', key)
end

-- id. Gives the status that it had, or nothing for an unknown id.
function operations.cancel()
  local id = ARGV[4]
  local job = redis.call('HMGET', record(id), 'status', 'worker')
  if job[1] == 'queued' or job[1] == 'running' then
    if job[1] == 'running' then stop_run(id, job[2]) end
    finish(id, 'cancelled')
  end
  return job[1]
end

-- id, most jobs that its API key may have open (empty: any number). Gives the status that it had (nothing for an unknown
-- id), or {"full" or "limited", seconds} where there is no room.
function operations.retry()
  local id = ARGV[4]
  local key = record(id)
  local job = redis.call('HMGET', key, 'status', 'score', 'created', 'finished', 'start_within', 'finish_within',
    'stopping', 'idempotency', 'events', 'watched', 'owner', 'priority', 'turn', 'cache')
  if not (TRANSITIONS[job[1]] and job[1] ~= 'running' and TRANSITIONS[job[1]].queued) then return job[1] end
  local again = has_no_room(redis.call('HSTRLEN', key, 'input'))
  if again then return {'full', again} end
  if job[11] and limited(job[11], 1, ARGV[5]) then return {'limited', soon()} end
  local start_by, finish_by = tonumber(job[5] or 0), tonumber(job[6] or 0)
  if start_by > 0 then start_by = now + start_by end
  if finish_by > 0 then finish_by = now + finish_by end
  local turn = take_turn(turns(), job[11] or '', job[12], 1, 0)
  local score = (turn or now) + job[2] - (job[13] or job[3])
  if turn then redis.call('HSET', key, 'turn', turn) else redis.call('HDEL', key, 'turn') end
  if job[11] then
    open(job[11], 1)
    redis.call('ZREM', OWNED_EXPIRES, job[11] .. ':' .. id)
  end
  redis.call('HSET', key, 'status', 'queued', 'score', score, 'base', redis.call('HGET', key, 'attempt'), 'alone', 0,
    'start_by', start_by, 'finish_by', finish_by)
  redis.call('HDEL', key, 'worker', 'token', 'started', 'finished', 'expires', 'batch_size', 'error', 'timings', 'stopping',
    'progress')
  redis.call('PERSIST', key)
  if job[9] then
    redis.call('PERSIST', said(id))
    redis.call('PERSIST', partial(id))
  end
  if job[10] then told[#told + 1] = id end
  redis.call('DEL', seen(id))
  if job[8] then redis.call('PERSIST', promised(job[8])) end
  if HAS_CELERYS_KEYS then redis.call('DEL', 'celery-task-meta-' .. id) end
  redis.call('ZREM', EXPIRES, id)
  local deadline = next_deadline(start_by, finish_by)
  if deadline > 0 then redis.call('ZADD', DEADLINES, deadline, id) end
  weigh(id, 1)
  if job[7] and job[4] + RUN_ENDS_US > now then
    redis.call('ZADD', DELAYED, job[4] + RUN_ENDS_US, id)
  else
    enqueue(id, score, job[14])
  end
  return job[1]
end

local REASONS = {
  lost = 'the process that ran the job died',
  memory = "the process that ran the job grew over the service's memory_limit_mb",
  timed_out = "the run took longer than the service's time_limit_s",
}

-- One running job whose run came to nothing. Its batch mates are not charged and run alone next, as it does.
local function run_again(id, reason, pause)
  local job = redis.call('HMGET', record(id), 'batch_size', 'attempt', 'base', 'max_attempts', 'group')
  local alone = tonumber(job[1] or 1) <= 1
  local attempts = job[2] - (job[3] or 0)
  local last = attempts >= tonumber(job[4])
  local code = reason == 'timed_out' and 'timed_out' or 'worker_lost'
  if reason == 'handed_back' then
    put_back(id, reason, false, false, 0)
  elseif not alone then
    put_back(id, reason, false, true, 0)
  elseif last or (reason == 'timed_out' and pause == 0 and not job[5]) then
    local each = attempts > 1 and ', in each of ' .. int(attempts) .. ' attempts' or ''
    finish(id, 'failed', error_json(code, REASONS[reason] .. each, true))
  else
    put_back(id, reason, true, true, math.min(MAX_PAUSE_US, pause * 2 ^ (attempts - 1)), error_json(code, REASONS[reason], true))
  end
end

-- worker, process (its tokens begin with this and a dot; empty: only the batch's), token of the batch that came to nothing
-- (or empty), why ("lost", "memory", "timed_out", "handed_back"), pause_us before a further attempt (0: a lost job is run
-- again at once, one that timed out not at all). What else the process had claimed had not begun: it is handed back. Gives
-- the ids.
function operations.give_up()
  local worker, process, token, reason, pause = ARGV[4], ARGV[5] .. '.', ARGV[6], ARGV[7], tonumber(ARGV[8])
  local mine, given = redis.call('HGETALL', S .. 'running:' .. worker), {}
  if ARGV[5] ~= '' then redis.call('HDEL', busy(worker), ARGV[5]) end
  for i = 1, #mine, 2 do
    local is_its = mine[i + 1] == token
    if is_its or (process ~= '.' and mine[i + 1]:sub(1, #process) == process) then
      run_again(mine[i], is_its and reason or 'handed_back', pause)
      given[#given + 1] = mine[i]
    end
  end
  return given
end

-- Of two batches of one process, that with the higher number was claimed ahead: it had not begun, so it is no suspect.
local function forget(worker, reason)
  local tokens, mine, first = redis.call('HGETALL', S .. 'running:' .. worker), {}, {}
  for i = 2, #tokens, 2 do
    local process, number = tokens[i]:match('^(.*)%.(%d+)$')
    if process then first[process] = math.min(first[process] or math.huge, tonumber(number)) end
  end
  for i = 1, #tokens, 2 do
    local process, number = tokens[i + 1]:match('^(.*)%.(%d+)$')
    local ahead = process and tonumber(number) > first[process]
    mine[#mine + 1] = tokens[i]
    run_again(tokens[i], ahead and 'handed_back' or reason, 0)
  end
  for _, message in ipairs(redis.call('HVALS', S .. 'taken:' .. worker)) do
    redis.call('RPUSH', service, message)
  end
  redis.call('DEL', S .. 'running:' .. worker, S .. 'taken:' .. worker, S .. 'cancels:' .. worker, busy(worker))
  redis.call('ZREM', WORKERS, worker)
  redis.call('HDEL', INFO, worker)
  return mine
end

-- worker, lease_us, info: a new worker of this service
function operations.join()
  redis.call('ZADD', WORKERS, now + ARGV[5], ARGV[4])
  redis.call('HSET', INFO, ARGV[4], ARGV[6])
end

-- version, knobs (JSON), max_queue_size, max_queue_bytes, cache_for_us, model: what a worker knows of its service as soon
-- as it is loaded
function operations.tell()
  if redis.call('HGET', ABOUT, 'model') ~= ARGV[9] then redis.call('HDEL', ABOUT, 'batch_time', 'row_time') end
  redis.call('HSET', ABOUT, 'version', ARGV[4], 'knobs', ARGV[5], 'max_queue_size', ARGV[6],
    'max_queue_bytes', ARGV[7], 'cache_for', ARGV[8], 'model', ARGV[9])
  redis.call('HDEL', ABOUT, 'failure')
end

-- worker, lease_us, info. Gives {1 or 0: whether the lease was still held, {"<token> <job>" of a cancelled run, ...}}
function operations.renew()
  if not redis.call('ZSCORE', WORKERS, ARGV[4]) then return {0, {}} end
  redis.call('ZADD', WORKERS, now + ARGV[5], ARGV[4])
  redis.call('HSET', INFO, ARGV[4], ARGV[6])
  local cancels = redis.call('SMEMBERS', S .. 'cancels:' .. ARGV[4])
  redis.call('DEL', S .. 'cancels:' .. ARGV[4])
  return {1, cancels}
end

-- worker, lease_us: renewed by a pool process whose worker's main process may be stopped. Gives 1, or 0 where the lease
-- has lapsed and what runs is others' now.
function operations.extend()
  if not redis.call('ZSCORE', WORKERS, ARGV[4]) then return 0 end
  redis.call('ZADD', WORKERS, 'GT', now + ARGV[5], ARGV[4])
  return 1
end

-- failure (JSON): why the plugin cannot be loaded
function operations.fail()
  redis.call('HSET', ABOUT, 'failure', ARGV[4])
end

-- worker: it stops; what it has not finished goes back at once, uncharged
function operations.leave()
  return forget(ARGV[4], 'handed_back')
end

-- The clock went back: what was told to wait until the time that it had shown would wait for ever.
local function mend_times()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, now + MAX_PAUSE_US, '+inf')) do
    redis.call('ZADD', DELAYED, now, id)
  end
  end_turns()
  local ids = redis.call('ZRANGEBYSCORE', WAITING, now, '+inf')
  for i, id in ipairs(ids) do
    local job = redis.call('HMGET', record(id), 'score', 'created', 'turn')
    if job[1] and tonumber(job[2]) > now then
      local score = now + job[1] - job[2] - (#ids - i)  -- in the order in which they came
      redis.call('HSET', record(id), 'score', score)
      if job[3] then redis.call('HSET', record(id), 'turn', now + job[3] - job[2]) end
      redis.call('ZADD', WAITING, score, id)
      redis.call('ZADD', CHUNKS, 'XX', score, id)
    end
  end
end

-- Jobs of workers whose lease has lapsed run again. Not after a time without a sweep, in which Redis may have been away,
-- and not after a jump of its clock: then the living could not renew either. That time does not count: what was left of
-- each lease at the last sweep is left again, and half of one at least; after a jump back, nobody knows what was left.
local function recover(lease)
  if redis.call('ZCARD', WORKERS) == 0 then return {} end
  local last, lost = tonumber(redis.call('GET', S .. 'swept') or 0), {}
  if now >= last and now < last + SWEEP_US then return lost end
  redis.call('SET', S .. 'swept', int(now))
  if now < last or now > last + lease / 2 then
    local leases = redis.call('ZRANGE', WORKERS, 0, -1, 'WITHSCORES')
    for i = 1, #leases, 2 do
      local left = now < last and lease or math.min(lease, math.max(leases[i + 1] - last, lease / 2))
      redis.call('ZADD', WORKERS, now + left, leases[i])
    end
    if now < last then mend_times() end
    return lost
  end
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', now)) do
    for _, id in ipairs(forget(worker, 'lost')) do lost[#lost + 1] = id end
  end
  return lost
end

-- lease_us. Run twice a second by each worker and once by each API, which keeps the clock of services that have no worker:
-- recovers what dead workers left, ends what is late, queues what was delayed, forgets what has expired. Gives the jobs
-- of dead workers.
function operations.sweep()
  local lost = recover(tonumber(ARGV[4]))
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', now, 'LIMIT', 0, 1000)) do
    local job = redis.call('HMGET', record(id), 'start_by', 'finish_by', 'status')
    redis.call('ZREM', DEADLINES, id)
    if job[3] then
      local start_by, finish_by = tonumber(job[1] or 0), tonumber(job[2] or 0)
      if not end_if_late(id, start_by, finish_by, job[3]) and finish_by > now then
        redis.call('ZADD', DEADLINES, finish_by, id)
      end
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, 1000)) do
    redis.call('ZREM', DELAYED, id)
    local job = redis.call('HMGET', record(id), 'score', 'cache', 'group')
    if job[1] then enqueue(id, job[1], job[2], job[3]) end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', EXPIRES, '-inf', now, 'LIMIT', 0, 1000)) do
    redis.call('ZREM', EXPIRES, id)
    redis.call('ZREM', INDEX, id)
  end
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', OWNED_EXPIRES, '-inf', now, 'LIMIT', 0, 1000)) do
    local owner, id = member:match('^([^:]*):(.*)$')
    redis.call('ZREM', OWNED_EXPIRES, member)
    redis.call('ZREM', owned(owner), id)
  end
  forget_turns()
  return lost
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

-- Gives {depth, created of the oldest of the ten jobs that are next (0: none), now, {info of a live worker, ...}, about,
-- how many jobs (and chunks of batches) run}
function operations.overview()
  local oldest = 0
  for _, id in ipairs(redis.call('ZRANGE', WAITING, 0, 9)) do
    local created = tonumber(redis.call('HGET', record(id), 'created') or now)
    if oldest == 0 or created < oldest then oldest = created end
  end
  local live = redis.call('ZRANGEBYSCORE', WORKERS, '(' .. string.format('%.0f', now), '+inf')
  local infos, running = {}, 0
  for _, worker in ipairs(live) do
    infos[#infos + 1] = redis.call('HGET', INFO, worker) or '{}'
    running = running + #redis.call('HKEYS', S .. 'running:' .. worker)
  end
  return {redis.call('ZCARD', WAITING) + redis.call('ZCARD', DELAYED), string.format('%.0f', oldest), string.format('%.0f', now), infos,
    redis.call('HGETALL', ABOUT), running}
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
