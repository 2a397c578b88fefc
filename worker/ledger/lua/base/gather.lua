-- Commands that are sent once for all jobs of a call: the entries that the jobs add to a key, or take out of it, are
-- collected. A command for each job would cost a claim and a completion of 64 jobs a third of their time (measured).

local gathered = {}

-- Sends the commands. Must be called before a collected key is read.
local function flush()
  for _, command in ipairs(gathered) do
    if #command > 2 then redis.call(unpack(command)) end
  end
  gathered = {}
end

-- ``second`` may be nil.
local function gather(name, key, first, second)
  local place = name .. key
  local command = gathered[place]
  if not command or #command > 1000 then
    command = {name, key}
    gathered[place] = command
    gathered[#gathered + 1] = command
  end
  command[#command + 1] = first
  if second then command[#command + 1] = second end
end
