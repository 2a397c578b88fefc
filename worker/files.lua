-- The records of files; their bytes are in the storage (storage.py), never in Redis.
--
-- KEYS[1] "{.files}:expires"; no service's name can be ".files". ARGV: operation, then its own.
--
-- Keys, all in the one slot of the hash tag F = "{.files}":
--   F:file:<sha256>   hash    blob (its name in the storage), size, type, created, expires
--   F:expires         zset    every file by the time at which it is dropped
--   F:holds:<sha256>  zset    "<service>/<job>" by the time of its acceptance: jobs whose input names the file. Who has
--                             ended is taken out when somebody looks (files_async.py), so nothing is to be told at an end
--   F:blobs           zset    blobs that belong to no file, by the time at which they may be removed: uploads on their way,
--                             and what dropped files left
--   F:secret          string  what download links are signed with (written by files_async.py)
--
-- A blob's name is used once, so the removal of one never meets a new upload of the same content. All times are
-- microseconds by Redis's own clock. A file is there as long as its record is.

local F = '{.files}:'
local EXPIRES, BLOBS = KEYS[1], F .. 'blobs'
local operation = ARGV[1]

local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]

local function file(id) return F .. 'file:' .. id end
local function holds(id) return F .. 'holds:' .. id end
local function int(number) return string.format('%.0f', number) end

-- {blob, size, type, created, expires}; {} where there is none.
local function read(id)
  local found = redis.call('HMGET', file(id), 'blob', 'size', 'type', 'created', 'expires')
  return found[1] and found or {}
end

local function live_until(id, least)
  if tonumber(redis.call('HGET', file(id), 'expires')) < least then
    redis.call('HSET', file(id), 'expires', int(least))
    redis.call('ZADD', EXPIRES, int(least), id)
  end
end

local operations = {}

-- blob, us, "new", "output" or "": an upload or the storing of an output begins, or goes on and renews its time. 0: it had
-- none left.
function operations.open(blob, us, new)
  local until_us = redis.call('ZSCORE', BLOBS, blob)
  if new == '' and not (until_us and tonumber(until_us) > now) then return 0 end
  redis.call('ZADD', BLOBS, int(now + us), blob)
  return 1
end

-- blob, id, size, type, keep_us, lost: the upload is complete. What became of it, and the file: "new" (also when it is said
-- again); "known", where the content is there already, in another blob than the lost one; "late", where the blob may be gone.
function operations.bind(blob, id, size, kind, keep, lost)
  local found = read(id)
  if found[1] ~= blob then
    local until_us = redis.call('ZSCORE', BLOBS, blob)
    if not (until_us and tonumber(until_us) > now) then return {'late', {}} end
    if found[1] and found[1] ~= lost then
      if found[3] == 'application/octet-stream' then redis.call('HSET', file(id), 'type', kind) end
      live_until(id, now + keep)
      return {'known', read(id)}
    end
    redis.call('HSET', file(id), 'blob', blob, 'size', size, 'type', kind)
    if not found[1] then redis.call('HSET', file(id), 'created', int(now), 'expires', 0) end
    redis.call('ZREM', BLOBS, blob)
  end
  live_until(id, now + keep)
  return {'new', read(id)}
end

-- blob: it is not needed, unless it was bound (nobody may know: the answer was lost). The sweep removes it.
function operations.release(blob)
  if redis.call('ZSCORE', BLOBS, blob) then redis.call('ZADD', BLOBS, int(now), blob) end
end

-- id, keep_us: it lives at least so long from now.
function operations.keep(id, keep)
  local found = read(id)
  if found[1] then live_until(id, now + keep) end
  return found
end

-- holder, grace_us, id ...: a job is about to be accepted whose input names these files. The files, each with its holders. Each lives on for the
-- grace at least, in which the job's record will be there to be looked at.
function operations.hold(holder, grace, ...)
  local files = {}
  for i, id in ipairs({...}) do
    files[i] = read(id)
    if files[i][1] then
      redis.call('ZADD', holds(id), int(now), holder)
      live_until(id, now + grace)
      files[i][6] = redis.call('ZCARD', holds(id))
    end
  end
  return files
end

-- id, grace_us, most: the oldest holders, each with 1 where it is so young that its job's record may not be there yet.
function operations.holders(id, grace, most)
  local found = redis.call('ZRANGE', holds(id), 0, most - 1, 'WITHSCORES')
  for i = 2, #found, 2 do found[i] = tonumber(found[i]) > now - grace and 1 or 0 end
  return found
end

-- most: files whose time is over.
function operations.due(most) return redis.call('ZRANGEBYSCORE', EXPIRES, '-inf', int(now), 'LIMIT', 0, most) end

-- id, "force" or "": drop a file that nobody holds, and whose time is over (or by force). 0: it is held, or lives longer.
function operations.drop(id, force)
  local found = read(id)
  if not found[1] then
    redis.call('ZREM', EXPIRES, id)
    return 1
  end
  if redis.call('ZCARD', holds(id)) > 0 or (force == '' and tonumber(found[5]) > now) then return 0 end
  redis.call('DEL', file(id), holds(id))
  redis.call('ZREM', EXPIRES, id)
  redis.call('ZADD', BLOBS, int(now), found[1])
  return 1
end

-- most: blobs to remove from the storage, and then by ZREM from here.
function operations.orphans(most) return redis.call('ZRANGEBYSCORE', BLOBS, '-inf', int(now), 'LIMIT', 0, most) end

-- A full Redis lets a script go on that has begun with something that needs no memory (see ledger.lua): what is accepted
-- must come to its end, and what is to go must go. Only new uploads and new jobs are refused.
if operation ~= 'hold' and ARGV[4] ~= 'new' then redis.call('DEL', F .. 'nothing') end

local arguments = {}
for i = 2, #ARGV do arguments[i - 1] = ARGV[i] end
return operations[operation](unpack(arguments))
