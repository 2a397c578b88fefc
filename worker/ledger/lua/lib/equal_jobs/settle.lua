-- The end of a job, for its equals.
--@ include "lib/equal_jobs/copies" "lib/equal_jobs/places"

-- An output with a file lives as long as the job that made it, so no other job takes it over.
local FILE = '"url":"/files/'

-- A leader has succeeded: its result is taken over by its equals, and by later jobs.
local function share_result(id, key, us, keep, output)
  local ms = math.floor(math.min(tonumber(us), tonumber(keep)) / 1000)
  if ms > 0 then redis.call('SET', S .. 'cached:' .. key, id .. ' ' .. NOW, 'PX', int(ms)) end
  local ids = redis.call('ZRANGE', equals_key(key), 0, -1)
  redis.call('DEL', equals_key(key))
  tally('parked', -#ids)
  for _, equal in ipairs(ids) do
    if copied < MAX_COPIED then take_over(equal, id, output) else take_later(equal, id) end
  end
end

-- was: the job's state before its end; keep: for how long its record is kept.
local function settle_equals(id, wish, was, status, value, keep)
  local key, us = split_wish(wish)
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
    share_result(id, key, us, keep, value)
  elseif redis.call('HEXISTS', record(id), 'stopping') == 1 then
    promote(key)  -- its own client, or its own deadline, ended it
  else
    release_equals(key)
  end
end
