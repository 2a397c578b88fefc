-- create: stores new jobs, or finds those that were stored before.
--
-- Arguments, for each job: id, version, priority, offset_us (of the priority), start_within_us, finish_within_us, keep_us,
--   plain (MessagePack: the names and values of fields that are stored as they stand; empty: none), input, message (empty:
--   the job came as another producer's message and needs no further one), error (JSON of a job that failed at once, else
--   empty), promise (sha256 of its Idempotency-Key; empty: none), body (sha256 of the request; without a promise: the id is
--   the client's own and as good as a key), owner (the API key's id; empty: none), most_open (unfinished jobs that the key may
--   have; empty: any number), awaited (1 where the client waits for the end, else empty), asked (the cache that it asks for:
--   "<fingerprint> <us>", us empty for the service's own time; empty: none), not_before_us (0: none; a time in the past is as
--   good as none).
-- Answer, for each job: state, created, position. The state is
--   "queued"; "cached": it has ended already, with the output of another job;
--   "full" or "limited": created is the number of seconds after which to try again;
--   "same" or "conflict": created is the id of the job that has this key or id, with the same body or a different one;
--   "gone": a job that had this id was dropped;
--   and, for a job that came as a message, "other": the job that has this id has a different input; "revoked": it has ended.
--   Last comes the time for which the service keeps results for other jobs (microseconds, or empty).
-- A repeated call finds the records that the first one wrote, and changes nothing.
--@ include "lib/commit" "lib/equal_jobs/join" "lib/equal_jobs/results" "lib/finish" "lib/limits" "lib/next_deadline"
--@ include "lib/turns"

local ARGUMENTS = 18  -- of a job
local KEEPS_ALL = ARGV[3]:sub(1, 4) == 'all '
local INDEX = S .. 'index'

local most, most_bytes, waiting_bytes, parked_jobs, service_version, model, cache_us = unpack(redis.call('HMGET', ABOUT,
  'max_queue_size', 'max_queue_bytes', 'waiting_bytes', 'parked', 'version', 'model', 'cache_for'))
local waiting = count_waiting(parked_jobs)
local fair = read_turns()
local parked = {}  -- ids of new jobs that wait for an equal one -> their wishes
waiting_bytes = tonumber(waiting_bytes or 0)

-- Whether the job was there before: the state and the id (or, of a job that came as a message, its time of creation) to
-- answer with; nothing for a new job.
local function find_earlier(id, promise, body, message, input)
  local key = record(id)
  local created = redis.call('HGET', key, 'created')
  local state, detail = created and 'queued', created
  local earlier, earlier_body = (promise ~= '' and redis.call('GET', promise_of(promise)) or ''):match('^(%S+) (%S+)$')
  if earlier and earlier ~= id then state, detail = body == earlier_body and 'same' or 'conflict', earlier end
  if promise == '' and body ~= '' then
    if state then
      state, detail = redis.call('HGET', key, 'body') == body and 'same' or 'conflict', id
    elseif redis.call('EXISTS', seen(id)) == 1 then
      state, detail = 'gone', id
    end
  end
  if state and message == '' and redis.call('HGET', key, 'input') ~= input then state = 'other' end
  return state, detail
end

-- The wish of a new job, see lib/equal_jobs/keys; nothing where it uses no cache, or where the worker's version is not the
-- version by which the API has read the input.
local function make_wish(asked, version)
  local fingerprint, us = asked:match('^(%S+) (%S*)$')
  if us == '' then us = cache_us end
  if not (fingerprint and us and tonumber(us) > 0 and model) or version ~= service_version then return nil end
  return fingerprint .. '.' .. model .. ' ' .. us
end

-- Stores the fields that only some jobs have.
local function write_options(key, id, plain, promise, body, owner, awaited, not_before, turn, wish)
  if plain ~= '' then redis.call('HSET', key, unpack(cmsgpack.unpack(plain))) end
  if promise ~= '' then
    redis.call('SET', promise_of(promise), id .. ' ' .. body)
    redis.call('HSET', key, 'idempotency', promise)
  elseif body ~= '' then
    redis.call('HSET', key, 'body', body)
  end
  if not_before > 0 then redis.call('HSET', key, 'not_before', int(not_before)) end
  if awaited ~= '' then redis.call('HSET', key, 'awaited', 1) end
  if turn then redis.call('HSET', key, 'turn', int(turn)) end
  if wish then redis.call('HSET', key, 'cache', wish) end
  if owner ~= '' then
    redis.call('HSET', key, 'owner', owner)
    add_open(owner, 1)
  end
end

-- The deadlines of a job that counts from this time on.
local function write_deadlines(key, id, from, start_within, finish_within)
  local start_by = start_within > 0 and from + start_within or 0
  local finish_by = finish_within > 0 and from + finish_within or 0
  redis.call('HSET', key, 'start_within', start_within, 'finish_within', finish_within, 'start_by', int(start_by),
    'finish_by', int(finish_by))
  gather('ZADD', DEADLINES, next_deadline(start_by, finish_by), id)
end

-- A new job takes its place: it ends with the result of an equal one, waits for its time, for an equal job or in the queue.
-- Gives its state.
local function place_job(id, score, message, not_before, wish, equal, output)
  if output then
    flush()
    take_over(id, equal, output)
    return 'cached'
  elseif equal then
    take_later(id, equal)
    waiting = waiting + 1
  elseif not_before > now then
    gather('ZADD', SCHEDULED, int(not_before), id)
  else
    if not wish then gather('ZADD', WAITING, score, id) elseif not join_equals(id, wish, score) then parked[id] = wish end
    if message ~= '' and not parked[id] then gather('LPUSH', service, message) end
    waiting = waiting + 1
  end
  return 'queued'
end

-- The job of the arguments from i on; shift: microseconds that keep the order of the jobs of a call. Gives its state and
-- "created".
local function create_job(i, shift)
  local id, version, priority, offset, start_within, finish_within, keep, plain, input, message, problem, promise, body,
    owner, most_open, awaited, asked, not_before = unpack(ARGV, i, i + ARGUMENTS - 1)
  local state, detail = find_earlier(id, promise, body, message, input)
  if state then return state, detail end
  not_before = tonumber(not_before)
  local is_later = not_before > now
  local wish = asked ~= '' and make_wish(asked, version)
  local equal, output
  if wish and not is_later then equal, output = find_result(wish) end
  if not equal then
    local again = message ~= '' and full(is_later and 0 or waiting, waiting_bytes + bytes_change, #input, most, most_bytes)
    if again then return 'full', int(again) end
    if limited(owner, 1, most_open) then return 'limited', int(next_end_s()) end
  end
  local turn
  if not equal and not is_later then
    turn, offset = take_turn(fair, owner, priority, wish and has_equals(wish) and 0 or 1, offset)
  end
  local key, created = record(id), now + shift
  local score = int((turn or is_later and not_before or created) + offset)
  created = int(created)
  redis.call('HSET', key, 'service', service, 'version', version, 'status', 'queued', 'priority', priority,
    'attempt', '0', 'created', created, 'score', score, 'keep', keep, 'input', input)
  if HAS_CELERYS_KEYS and (message == '' or KEEPS_ALL) then redis.call('HSET', key, 'celery', 1) end
  write_options(key, id, plain, promise, body, owner, awaited, not_before, turn, wish)
  start_within, finish_within = tonumber(start_within), tonumber(finish_within)
  if start_within + finish_within > 0 then
    write_deadlines(key, id, math.max(now, not_before), start_within, finish_within)
  end
  bytes_change = bytes_change + #input
  gather('ZADD', INDEX, created, id)
  if owner ~= '' then gather('ZADD', S .. 'owned:' .. owner, created, id) end
  state = place_job(id, score, message, not_before, wish, equal, output)
  if message == '' and redis.call('EXISTS', S .. 'revoked:' .. id) == 1 then
    state = 'revoked'
    flush()
    finish(id, 'cancelled')
  elseif problem ~= '' then
    flush()
    finish(id, 'failed', problem)
  end
  return state, created
end

local answer = {}
for i = FIRST, #ARGV, ARGUMENTS do
  local n = #answer
  local state, created = create_job(i, n)
  answer[n + 1], answer[n + 2], answer[n + 3] = state, created, ARGV[i]
end
flush()
-- The position of a job: the number of jobs before it or, where it is parked, before the first of its equals.
for i = 3, #answer, 3 do
  local id = answer[i]
  local wish = parked[id]
  answer[i] = redis.call('ZRANK', WAITING, id)
    or wish and (redis.call('ZRANK', WAITING, first_of(split_wish(wish)) or '') or 0) or -1
end
answer[#answer + 1] = cache_us or ''
return commit(answer)
