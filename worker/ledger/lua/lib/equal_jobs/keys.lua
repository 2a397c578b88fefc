-- Equal jobs: a result that later jobs take over, and equal jobs in flight that run once.
--
-- A job that takes part has the field "cache" in its record, its wish: "<key> <us>". The key is "<fingerprint>.<model>": the
-- API's hash of service, version, owner and input (fingerprint.py), and the hash of the worker's version and knobs (cache.py).
-- The job takes no result that is older than us microseconds, and its own result is taken over for that long. A job that
-- ended with the output of another job names that job in "cached_from".
--
--   S:cached:<key>   string  "<job> <when it ended>": the job whose result this is. Lives for that job's us, and not longer
--                            than its record, from which the output is read
--   S:equals:<key>   zset    queued jobs with this key, by urgency. The first of them waits in S:waiting for all of them, or
--                            none does while the leader runs. The others are parked ("parked" of S:about counts them)
--   S:leader:<key>   string  the running job whose end the parked jobs wait for; dropped at that end
--
-- A job that pauses before a retry is not among its equals. Where the leader's run fails, the jobs that waited for it wait
-- no longer: each runs by itself, so that sharing costs a job no more than the time of that one run.
--@ include "base/keys"

local function equals_key(key) return S .. 'equals:' .. key end
local function leader_key(key) return S .. 'leader:' .. key end

local function split_wish(wish) return wish:match('^(%S+) (%S+)$') end

local function is_led(key)
  local id = redis.call('GET', leader_key(key))
  return id and redis.call('HGET', record(id), 'status') == 'running'
end

local function first_of(key) return redis.call('ZRANGE', equals_key(key), 0, 0)[1] end
