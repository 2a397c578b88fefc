-- The cache: results that later jobs take over, and equal jobs in flight that run once. A part of ledger.lua, in the
-- middle of which it stands (scripts.py puts it there) and whose functions it calls.
--
-- A job that uses the cache has "cache" in its record: "<key> <us>". Its key is "<fingerprint>.<model>": what the API made
-- of service, version, owner and input (fingerprint.py), and what stands for the worker's version and knobs (cache.py). It
-- takes a result no older than us, and its own is taken for so long. A job that ended with another's output names that
-- one in "cached_from".
--
--   S:cached:<key>   string  "<job> <when it ended>": whose result it is; lives for that job's us, and not longer than its
--                            record, from which the output is read
--   S:equals:<key>   zset    queued jobs with this key, by urgency. The first of them waits in S:waiting for all, or none
--                            does while one runs; the others are parked ("parked" in S:about is how many)
--   S:leader:<key>   string  the running job whose end the parked ones wait for; gone with that end
--
-- No call copies much more than MAX_COPIED bytes of outputs: jobs beyond that have the one whose output they will take over
-- in "takes" of their records, and wait in S:delayed for the next sweep.
--
-- A job that pauses before a retry is none of the equals. Where a run fails, those that waited for it no longer do: each
-- runs by itself, so that sharing costs nobody more than the time of that one run.

local function make_cache()
  local cache = {}

  -- One end settles at most so many equals; jobs beyond them run by themselves.
  local MAX_EQUALS = 1000
  -- Bytes of outputs that one call copies, about.
  local MAX_COPIED = 8388608
  local copied = 0
  -- An output with a file, which lives as long as the job that made it: not to be taken over.
  local FILE = '"url":"/files/'

  local function cached_key(key) return S .. 'cached:' .. key end
  local function equals_key(key) return S .. 'equals:' .. key end
  local function leader_key(key) return S .. 'leader:' .. key end

  local function split(wish) return wish:match('^(%S+) (%S+)$') end

  local function is_led(key)
    local id = redis.call('GET', leader_key(key))
    return id and redis.call('HGET', record(id), 'status') == 'running'
  end

  local function first_of(key) return redis.call('ZRANGE', equals_key(key), 0, 0)[1] end

  -- What a record is to have as "cache": asked is "<fingerprint> <us>", us empty for as long as the service says. Nothing
  -- where no cache is used, or where the worker's version is not that by which the API has read the input.
  function cache.wish(asked, version, about_version, model, service_us)
    local fingerprint, us = asked:match('^(%S+) (%S*)$')
    if us == '' then us = service_us end
    if not (fingerprint and us and tonumber(us) > 0 and model) or version ~= about_version then return nil end
    return fingerprint .. '.' .. model .. ' ' .. us
  end

  local function has_output(id) return redis.call('HSTRLEN', record(id), 'output') > 0 end

  -- The result that a new job takes over: {job, output}, {job} where this call copies no more, or nothing.
  function cache.find(wish)
    local key, us = split(wish)
    local id, ended_at = (redis.call('GET', cached_key(key)) or ''):match('^(%S+) (%S+)$')
    if not id or ended_at + us <= now then return nil end
    if copied >= MAX_COPIED then return has_output(id) and {id} end
    local output = redis.call('HGET', record(id), 'output')
    return output and {id, output}
  end

  -- Whether a new job would wait for another's run, and so takes no turn of its own.
  function cache.has_equals(wish)
    local key = split(wish)
    return is_led(key) or redis.call('EXISTS', equals_key(key)) == 1
  end

  -- Jobs before one that is parked: those before the first of its equals.
  function cache.place(wish)
    return redis.call('ZRANK', WAITING, first_of(split(wish)) or '') or 0
  end

  -- A queued job ends with another's output, by way of "running" as every job that succeeds.
  function cache.take_over(id, from, output)
    must_go(id, 'queued', 'running')
    weigh(id, -1)
    redis.call('HSET', record(id), 'status', 'running', 'started', NOW, 'cached_from', from)
    redis.call('HDEL', record(id), 'takes')
    tally('reused', 1)
    reused = reused + 1
    copied = copied + #output
    write_end(id, redis.call('HMGET', record(id), unpack(JOB)), 'succeeded', output)
  end

  -- The same by a later call.
  function cache.take_later(id, from)
    redis.call('HSET', record(id), 'takes', from)
    redis.call('ZADD', DELAYED, NOW, id)
  end

  -- That call: false where the output is gone, so that the job is to run.
  function cache.take_now(id, from)
    local output = copied < MAX_COPIED and redis.call('HGET', record(from), 'output')
    if output then
      cache.take_over(id, from, output)
    elseif has_output(from) then
      cache.take_later(id, from)
    else
      redis.call('HDEL', record(id), 'takes')
      return false
    end
    return true
  end

  -- A queued job that may run: true where it waits in WAITING now, false where it is parked behind an equal one.
  function cache.join(id, wish, score)
    local key = split(wish)
    flush()
    if redis.call('ZCARD', equals_key(key)) >= MAX_EQUALS then
      redis.call('HDEL', record(id), 'cache')
      redis.call('ZADD', WAITING, score, id)
      return true
    end
    local first = redis.call('ZRANGE', equals_key(key), 0, 0, 'WITHSCORES')
    redis.call('ZADD', equals_key(key), score, id)
    if is_led(key) or (first[1] and tonumber(first[2]) <= tonumber(score)) then
      tally('parked', 1)
      return false
    end
    if first[1] then
      redis.call('ZREM', WAITING, first[1])
      tally('parked', 1)
    end
    redis.call('ZADD', WAITING, score, id)
    return true
  end

  -- The place of a job that was parked. fair: it takes a turn of its own now, as others who run by themselves.
  local function new_place(id, fair)
    local job = redis.call('HMGET', record(id), 'score', 'turn', 'created', 'owner', 'priority')
    local score, created = tonumber(job[1]), tonumber(job[3])
    local turn = fair and job[2] and take_turn(fair, job[4] or '', job[5], 1, 0)
    if turn then
      score = turn + score - job[2]
      redis.call('HSET', record(id), 'score', int(score), 'turn', int(turn))
    elseif job[2] then
      score = not_later(record(id), score, job[2])
    elseif created > now then
      score = now + score - created  -- stored while the clock was ahead
    end
    return int(score)
  end

  -- No equal runs, or waits in WAITING, any more: the next one does.
  local function promote(key)
    local id = first_of(key)
    if not id then return end
    local score = new_place(id)
    redis.call('ZADD', equals_key(key), score, id)
    redis.call('ZADD', WAITING, score, id)
    tally('parked', -1)
    ring(id)
  end

  -- Each of the parked runs by itself.
  local function release(key)
    local ids, fair = redis.call('ZRANGE', equals_key(key), 0, -1), turns()
    redis.call('DEL', equals_key(key))
    tally('parked', -#ids)
    for _, id in ipairs(ids) do
      redis.call('HDEL', record(id), 'cache')
      redis.call('ZADD', WAITING, new_place(id, fair), id)
      ring(id)
    end
  end

  -- A job is claimed by a worker with this model: those that equal it wait for its end.
  function cache.lead(id, wish, model)
    local key = split(wish)
    flush()
    redis.call('ZREM', equals_key(key), id)
    if key:match('[^.]*$') == model then return redis.call('SET', leader_key(key), id) end
    -- Another version, or other knobs, than those by which it was found equal.
    redis.call('HDEL', record(id), 'cache')
    release(key)
  end

  -- A job that ran is queued again.
  function cache.stop(id, wish)
    local key = split(wish)
    if redis.call('GET', leader_key(key)) ~= id then return end
    redis.call('DEL', leader_key(key))
    promote(key)
  end

  -- Whether one that equals this queued job runs: its own start is late no more, whatever becomes of that run.
  function cache.has_begun(id)
    local wish = redis.call('HGET', record(id), 'cache')
    if not (wish and is_led(split(wish))) then return false end
    redis.call('HSET', record(id), 'start_by', '0')
    return true
  end

  local function settle(key, us, id, keep, output)
    local life = math.floor(math.min(tonumber(us), tonumber(keep)) / 1000)
    if life > 0 then redis.call('SET', cached_key(key), id .. ' ' .. NOW, 'PX', int(life)) end
    local ids = redis.call('ZRANGE', equals_key(key), 0, -1)
    redis.call('DEL', equals_key(key))
    tally('parked', -#ids)
    for _, other in ipairs(ids) do
      if copied < MAX_COPIED then cache.take_over(other, id, output) else cache.take_later(other, id) end
    end
  end

  -- A job has ended: was is the state before, keep its keep_for.
  function cache.ended(id, wish, was, status, value, keep)
    local key, us = split(wish)
    flush()
    if was == 'queued' then
      local was_first = first_of(key) == id
      if redis.call('ZREM', equals_key(key), id) == 0 then return end
      if was_first and not is_led(key) then promote(key) else tally('parked', -1) end
      return
    end
    if redis.call('GET', leader_key(key)) ~= id then return end
    redis.call('DEL', leader_key(key))
    if status == 'succeeded' and not value:find(FILE, 1, true) then
      settle(key, us, id, keep, value)
    elseif redis.call('HEXISTS', record(id), 'stopping') == 1 then
      promote(key)  -- its own client, or its own deadline, ended it
    else
      release(key)
    end
  end

  return cache
end

-- They are made only where a job uses the cache: making them costs Redis 3 to 9 us a call (measured).
local made
local function cache()
  made = made or make_cache()
  return made
end
