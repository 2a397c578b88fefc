-- What a pool process does with a batch of jobs, from claim to complete. A part of ledger.lua, which names the keys.

-- Others' messages wait for their adoption under the names of worker and process, so that no death can lose one.
local function take_messages(worker, process, most)
  local foreign, start = {}, process .. ' '
  if redis.call('EXISTS', S .. 'taken:' .. worker) == 1 then  -- Redis was away as it adopted these
    local taken = redis.call('HGETALL', S .. 'taken:' .. worker)
    for i = 1, #taken, 2 do
      if taken[i]:sub(1, #start) == start then
        foreign[#foreign + 1] = taken[i]
        foreign[#foreign + 1] = taken[i + 1]
      end
    end
    if #foreign > 0 then return foreign end
  end
  for _, queue in ipairs(QUEUES) do
    local messages = redis.call('RPOP', queue, most)
    for i, message in ipairs(messages or {}) do
      if message:sub(1, #OURS) ~= OURS then
        local field = start .. int(now) .. ':' .. queue .. ':' .. i
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
    local job = redis.call('HMGET', record(id), 'created', 'not_before')
    oldest = math.min(oldest, math.max(tonumber(job[1] or now), tonumber(job[2] or 0)))
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

-- 1 where a whole batch waits, which feeder.py then claims ahead, else 0: as many jobs as one takes, or a chunk, which is one
-- by itself. Not a chunk that runs for long: little would be gained, and another's job would wait for it too.
local function whole_waits(most)
  local left = redis.call('ZCARD', WAITING)
  if left > 0 and redis.call('ZCARD', CHUNKS) > 0 then
    local id = redis.call('ZRANGE', WAITING, 0, 0)[1]
    if redis.call('ZSCORE', CHUNKS, id) then
      local rows, pace = redis.call('HGET', record(id), 'rows') or 0, redis.call('HGET', ABOUT, 'pace')
      return pace and rows * pace <= AHEAD_US and 1 or 0
    end
  end
  return left >= most and 1 or 0
end

-- worker, token, most, delay_us, max_attempts, version, preferred sizes ("8,16"), model. Gives {"fenced"},
-- {"foreign", {field, message, ...}}, {"hold", us} or {"batch", {id, attempt, input, first (of a chunk, else ""), ...}, 1
-- where a whole further one waits} (no id: nothing waits). Sent twice with one token, it gives the same batch.
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
  if #again > 0 then return {'batch', again, whole_waits(most)} end
  local process, batch, rows = process_of(token), {}, 0
  local foreign = take_messages(worker, process, most)
  if #foreign > 0 then return {'foreign', foreign} end
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
  local more = whole_waits(most)
  if not is_ahead and #batch > 0 then
    redis.call('HSET', busy(worker), process, NOW .. ' ' .. int(rows) .. ' 0')
  elseif not is_ahead then
    redis.call('HDEL', busy(worker), process)
  elseif #batch > 0 and more == 0 then  -- feeder.py will not look ahead again
    local run = (redis.call('HGET', busy(worker), process) or ''):match('^%S+ %S+')
    if run then redis.call('HSET', busy(worker), process, run .. ' ' .. number_of(token)) end
  end
  return {'batch', batch, more}
end

-- worker, fields of S:taken:<worker> whose messages are jobs of the ledger now
function operations.adopted()
  redis.call('HDEL', S .. 'taken:' .. ARGV[4], unpack(ARGV, 5))
end

-- The parts of this field ("so_far" or "merged"; "": none) stand before a chunk's output now; all others are dropped.
local function settle_parts(key, field)
  local found = redis.call('HMGET', key, 'so_far', 'merged', 'out')
  if not (found[1] or found[2] or found[3]) then return end
  local kept = field == 'so_far' and found[1] or field == 'merged' and found[2]
  if kept then redis.call('HDEL', key, field) end
  for _, name in ipairs({'so_far', 'merged', 'out'}) do drop_parts(key, name) end
  if kept then redis.call('HSET', key, 'out', kept) end
end

-- The rest of a chunk's results so far, after so many parts. Without any, those of a run that was handed back are dropped.
local function keep_partial(key, lines, parts)
  if parts == '0' then drop_parts(key, 'so_far') end
  redis.call('HSET', key, 'partial', lines)
end

-- token, id, "so_far" or "merged", number, lines. The next part of a chunk's results, with the lines of "partial" in it: 1,
-- or 0 where it is no longer this token's.
function operations.part()
  local key, field, number = record(ARGV[5]), ARGV[6], tonumber(ARGV[7])
  local job = redis.call('HMGET', key, 'token', 'status', 'out')
  if job[1] ~= ARGV[4] or job[2] ~= 'running' then return 0 end
  if number == 1 then drop_parts(key, field) end
  local series = (job[3] or '0'):match('^%d+') + (field == 'so_far' and 1 or 2)
  redis.call('HSET', key, int(series) .. '.' .. int(number), ARGV[8], field, int(series) .. ' ' .. int(number))
  if field == 'so_far' then redis.call('HDEL', key, 'partial') end
  return 1
end

-- token, how many of the batch's jobs earlier calls have told (-1: further calls will tell the rest), of a chunk: which of
-- its parts stand before its output ("so_far", "merged"; else empty), then per job: id, status, output or error, timings,
-- batch_size, pause_us (0: this end is final; else a failed job is run again after the pause, as long as it has attempts
-- left), rows of a chunk that failed (see keep_failed). Gives for each 1 where it stands as told, 2 where it will be run
-- again, 0 where it is no longer this batch's (cancelled, or run elsewhere since): the fence against a late worker.
local ENDING = {'token', 'attempt', 'base', 'max_attempts', unpack(JOB)}

function operations.complete()
  local token, reply, earlier, inputs, last = ARGV[4], {}, tonumber(ARGV[5]), 0, nil
  for i = 7, #ARGV, 7 do
    local id, status = ARGV[i], ARGV[i + 1]
    local job = redis.call('HMGET', record(id), unpack(ENDING))
    local mine, told = job[1] == token, 1
    if mine and job[5] == 'running' then
      if not (job[10] and job[3]) then inputs, last = inputs + (job[10] or 1), job end  -- not of what is left of a chunk
      local pause = tonumber(ARGV[i + 5])
      if pause > 0 and job[2] - (job[3] or 0) < tonumber(job[4]) then
        put_back(id, 'failed', true, false, pause, ARGV[i + 2])
        told = 2
      else
        if job[9] and status == 'succeeded' then settle_parts(record(id), ARGV[6]) end
        finish_job(id, {select(5, unpack(job, 1, #ENDING))}, status, ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 6])
      end
    end
    reply[#reply + 1] = (mine and (job[5] == 'running' or job[5] == status)) and told or 0
  end
  if last and earlier >= 0 then measure(last[6], token, inputs + earlier, tonumber(last[10] or 0), last[15]) end
  return reply
end

-- token, pause_us, ids of the token's jobs that have not begun: they wait so long, and it costs them no attempt
function operations.postpone()
  for i = 6, #ARGV do
    local job = redis.call('HMGET', record(ARGV[i]), 'token', 'status')
    if job[1] == ARGV[4] and job[2] == 'running' then put_back(ARGV[i], nil, false, false, tonumber(ARGV[5])) end
  end
end

-- token, id, results so far (lines, after so many parts). A chunk that is run row by row has come so far: 1, or 0 where it
-- is no longer this token's. What was lost before is no longer held against it.
function operations.progress()
  local key = record(ARGV[5])
  local job = redis.call('HMGET', key, 'token', 'status', 'attempt')
  if job[1] ~= ARGV[4] or job[2] ~= 'running' then return 0 end
  keep_partial(key, ARGV[6], ARGV[7])
  redis.call('HSET', key, 'base', job[3] - 1)
  return 1
end

-- token, id, results so far (lines, after so many parts), how many of these came of this run. A chunk whose rows turn out
-- to take long makes room for what is to be run before its rest, and waits with its results: 1, also where it is no longer
-- this token's; 0 where there is nothing, and it is to go on. Where there are turns, its rest has one of its own, as if it
-- had come now.
function operations.pause()
  local id, done = ARGV[5], tonumber(ARGV[8])
  local key = record(id)
  local job = redis.call('HMGET', key, 'token', 'status', 'attempt', 'score', 'turn', 'created', 'worker', 'started')
  if job[1] ~= ARGV[4] or job[2] ~= 'running' then return 1 end
  local last, score = tonumber(redis.call('HGET', ABOUT, 'turn')), tonumber(job[4])
  local turn = last and tonumber(job[5] or job[6])
  local rest = turn and math.max(turn + done * STEP_US, last)
  if rest then score = score + rest - turn end
  local first = redis.call('ZRANGE', WAITING, 0, 0, 'WITHSCORES')
  if not first[1] or tonumber(first[2]) >= score then return 0 end
  keep_partial(key, ARGV[6], ARGV[7])
  redis.call('HSET', key, 'base', job[3], 'retried', job[3], 'score', int(score))
  put_back(id, 'paused', true, false, 0)
  if rest then redis.call('HSET', key, 'turn', int(rest)) end
  measure(job[7], job[1], done, done, tonumber(job[8]))
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

local REASONS = {
  lost = 'the process that ran the job died',
  memory = "the process that ran the job grew over the service's memory_limit_mb",
  timed_out = "the run took longer than the service's time_limit_s",
}

-- One running job whose run came to nothing. Its batch mates are not charged and run alone next, as it does. Gives why it
-- has failed, where it does not run again.
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
    return code .. ': ' .. REASONS[reason] .. each
  else
    put_back(id, reason, true, true, math.min(MAX_PAUSE_US, pause * 2 ^ (attempts - 1)), error_json(code, REASONS[reason], true))
  end
end

-- A batch that was claimed ahead has gone back: its process will run it no more before it claims again.
local function runs_no_more_ahead(worker, token)
  local run, ahead = (redis.call('HGET', busy(worker), process_of(token)) or ''):match('^(%S+ %S+) (%S+)$')
  if run and tonumber(ahead) == number_of(token) then redis.call('HSET', busy(worker), process_of(token), run .. ' 0') end
end

-- A process is gone: the messages that it took and had not adopted wait again.
local function give_back_messages(worker, process)
  local taken, start = redis.call('HGETALL', S .. 'taken:' .. worker), process .. ' '
  for i = 1, #taken, 2 do
    if taken[i]:sub(1, #start) == start then
      redis.call('RPUSH', service, taken[i + 1])
      redis.call('HDEL', S .. 'taken:' .. worker, taken[i])
    end
  end
end

-- worker, process (its tokens begin with this and a dot; empty: only the batch's), token of the batch that came to nothing
-- (or empty), why ("lost", "memory", "timed_out", "handed_back"), pause_us before a further attempt (0: a lost job is run
-- again at once, one that timed out not at all). What else the process had claimed had not begun: it is handed back. Gives
-- {id, why it has failed (empty: it runs again), ...}.
function operations.give_up()
  local worker, process, token, reason, pause = ARGV[4], ARGV[5] .. '.', ARGV[6], ARGV[7], tonumber(ARGV[8])
  local mine, given = redis.call('HGETALL', S .. 'running:' .. worker), {}
  if ARGV[5] ~= '' then
    redis.call('HDEL', busy(worker), ARGV[5])
    give_back_messages(worker, ARGV[5])
  elseif reason == 'handed_back' then
    runs_no_more_ahead(worker, token)
  end
  for i = 1, #mine, 2 do
    local is_its = mine[i + 1] == token
    if is_its or (process ~= '.' and mine[i + 1]:sub(1, #process) == process) then
      given[#given + 1] = mine[i]
      given[#given + 1] = run_again(mine[i], is_its and reason or 'handed_back', pause) or ''
    end
  end
  return given
end
