-- list: finds jobs, newest first.
--
-- Arguments: status ("": any), before_us, before_id (from where to go on), most (jobs), look (records that it reads at most,
--   so a page may be short), owner (API key; "": any).
-- Answer: {time of creation and id of the last job that it looked at, or "" where there are no more, {id, …}}.
-- It only reads.
--@ include "base/keys"

local PAGE = 100
local status, before_us, before_id, most, look, owner = unpack(ARGV, FIRST)
local index = owner ~= '' and S .. 'owned:' .. owner or S .. 'index'
most, look = tonumber(most), tonumber(look)

local ids, looked_at, skip = {}, 0, 0
local last_us, last_id = '', before_id
while true do
  local page = redis.call('ZREVRANGEBYSCORE', index, before_us, '-inf', 'WITHSCORES', 'LIMIT', skip, PAGE)
  for i = 1, #page, 2 do
    local id, us = unpack(page, i, i + 1)
    local is_passed = us == before_us and id >= before_id
    if not is_passed then
      if #ids == most or looked_at == look then return {last_us, last_id, ids} end
      local state = redis.call('HGET', record(id), 'status')
      looked_at, last_us, last_id = looked_at + 1, us, id
      if state and (status == '' or status == state) then ids[#ids + 1] = id end
    end
  end
  if #page < 2 * PAGE then return {'', '', ids} end
  skip = skip + PAGE
end
