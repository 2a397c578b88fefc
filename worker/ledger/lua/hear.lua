-- hear: reads the state of a job and its published events; from now on its changes are published on jobs:told.
--
-- Arguments: id, after (number of the last event that the reader knows), most (events).
-- Answer: {status, started, finished, attempt, {number, name, run, attempt, data, …}, 1 where more events follow, else 0},
--   or nothing for an unknown job. State and events are read in one step, so no event appears after the job's end.
-- A repeated call sets the same mark again.
--@ include "lib/allow_when_full" "base/keys_of_jobs" "base/numbers"

-- Bytes of partial outputs that one call reads, about.
local MAX_READ = 4194304

-- Partial outputs after a number: ``most`` of them, or fewer where they are large; and whether it left any out as too large.
local function read_partial(key, after, most)
  local entries, bytes, page_size = {}, 0, 1
  while #entries < most do
    if bytes > MAX_READ then return entries, true end
    local page = redis.call('XRANGE', key, '(' .. after, '+', 'COUNT', math.min(page_size, most - #entries))
    if #page == 0 then break end
    for _, entry in ipairs(page) do
      entries[#entries + 1], bytes, after = entry, bytes + #entry[2][8], entry[1]
    end
    page_size = 2 * page_size
  end
  return entries, false
end

local function number_of_entry(entry) return entry and tonumber(entry[1]:match('^%d+')) or math.huge end

-- The events of both streams by their numbers, {number, name, run, attempt, data, …}, and 1 where more follow, else 0.
local function read_events(id, after, most)
  local outputs, is_cut = read_partial(partial(id), after, most)
  local others = redis.call('XRANGE', said(id), '(' .. after, '+', 'COUNT', most)
  local events, next_output, next_other = {}, 1, 1
  while true do
    local output, other = outputs[next_output], others[next_other]
    if #events >= 5 * most or (is_cut and not output) then return events, 1 end
    local entry = number_of_entry(other) < number_of_entry(output) and other or output
    if not entry then return events, 0 end
    if entry == other then next_other = next_other + 1 else next_output = next_output + 1 end
    events[#events + 1] = int(number_of_entry(entry))
    for field = 2, 8, 2 do events[#events + 1] = entry[2][field] end
  end
end

local id, after, most = unpack(ARGV, FIRST)
local status, started, finished, attempt, last, watched = unpack(redis.call('HMGET', record(id),
  'status', 'started', 'finished', 'attempt', 'events', 'watched'))
if not status then return nil end
if not watched and (status == 'queued' or status == 'running') then redis.call('HSET', record(id), 'watched', 1) end
local events, has_more = {}, 0
if tonumber(last or 0) > tonumber(after) then events, has_more = read_events(id, after, tonumber(most)) end
return {status, started or '0', finished or '0', attempt, events, has_more}
