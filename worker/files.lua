-- The records of files; their bytes are in the storage (storage.py), never in Redis.
--
-- KEYS[1] "{.files}:expires"; no service's name can be ".files". ARGV: operation, then its own.
--
-- Each API key has its files for itself: the same content sent with two keys is two files, each with a blob, a life and
-- holders of its own, so that no key can tell what another has. A file's name is "<sha256>" where it belongs to no key,
-- else "<key>/<sha256>"; its id, which clients see, is the sha256 alone.
--
-- Keys, all in the one slot of the hash tag F = "{.files}":
--   F:file:<name>     hash    blob (its name in the storage), size, type, created, expires; filename (that it was sent
--                             with last, "" or not there where with none)
--   F:owners:<sha256> set     API keys that have a file of this content
--   F:expires         zset    every file's name by the time at which it is dropped
--   F:holds:<name>    zset    "<service>/<job>" by the time of its acceptance: jobs whose input names the file. Who has
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

local function file(name) return F .. 'file:' .. name end
local function holds(name) return F .. 'holds:' .. name end
local function owners(id) return F .. 'owners:' .. id end
local function int(number) return string.format('%.0f', number) end

-- {blob, size, type, created, expires, filename}; {} where there is none.
local function read(name)
  local found = redis.call('HMGET', file(name), 'blob', 'size', 'type', 'created', 'expires', 'filename')
  return found[1] and found or {}
end

-- The files of an id that an API key sees, {name, what read gives}; sees empty: everybody's, that of no key first.
local function find(id, sees)
  local names, found = {sees == '' and id or sees .. '/' .. id}, {}
  if sees == '' then
    local keys = redis.call('SMEMBERS', owners(id))
    table.sort(keys)
    for _, key in ipairs(keys) do names[#names + 1] = key .. '/' .. id end
  end
  for _, name in ipairs(names) do
    local told = read(name)
    if told[1] then
      table.insert(told, 1, name)
      found[#found + 1] = told
    end
  end
  return found
end

local function live_until(name, least)
  if tonumber(redis.call('HGET', file(name), 'expires')) < least then
    redis.call('HSET', file(name), 'expires', int(least))
    redis.call('ZADD', EXPIRES, int(least), name)
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

-- blob, name, size, type, keep_us, lost, filename: the upload is complete, and its name, where it has one, is the file's. What became of it, and the file: "new" (also when it is
-- said again); "known", where the content is there already, in another blob than the lost one; "late", where the blob may
-- be gone.
function operations.bind(blob, name, size, kind, keep, lost, filename)
  local found = read(name)
  if found[1] ~= blob then
    local until_us = redis.call('ZSCORE', BLOBS, blob)
    if not (until_us and tonumber(until_us) > now) then return {'late', {}} end
    if found[1] and found[1] ~= lost then
      if found[3] == 'application/octet-stream' then redis.call('HSET', file(name), 'type', kind) end
      if filename ~= '' then redis.call('HSET', file(name), 'filename', filename) end
      live_until(name, now + keep)
      return {'known', read(name)}
    end
    redis.call('HSET', file(name), 'blob', blob, 'size', size, 'type', kind)
    if filename ~= '' then redis.call('HSET', file(name), 'filename', filename) end
    if not found[1] then redis.call('HSET', file(name), 'created', int(now), 'expires', 0) end
    local key, id = name:match('^(.*)/(.*)$')
    if key then redis.call('SADD', owners(id), key) end
    redis.call('ZREM', BLOBS, blob)
  end
  live_until(name, now + keep)
  return {'new', read(name)}
end

-- blob: it is not needed, unless it was bound (nobody may know: the answer was lost). The sweep removes it.
function operations.release(blob)
  if redis.call('ZSCORE', BLOBS, blob) then redis.call('ZADD', BLOBS, int(now), blob) end
end

-- name, keep_us: it lives at least so long from now.
function operations.keep(name, keep)
  local found = read(name)
  if found[1] then live_until(name, now + keep) end
  return found
end

-- sees, id ...: of each id the files that are seen, as find gives them.
function operations.find(sees, ...)
  local files = {}
  for i, id in ipairs({...}) do files[i] = find(id, sees) end
  return files
end

-- holder, grace_us, API key of the job (empty: none, which may use everybody's), id ...: a job is about to be accepted, or
-- to run again, whose input names these files. Of each the file as find gives it, and how many holders it has, or {}. Each
-- lives on for the grace at least, in which the job's record will be there to be looked at.
function operations.hold(holder, grace, key, ...)
  local files = {}
  for i, id in ipairs({...}) do
    local told = find(id, key)[1] or {}
    if told[1] then
      redis.call('ZADD', holds(told[1]), int(now), holder)
      live_until(told[1], now + grace)
      told[8] = redis.call('ZCARD', holds(told[1]))
    end
    files[i] = told
  end
  return files
end

-- name, grace_us, most: the oldest holders, each with the time at which it began to hold, and 1 where it is so young that
-- its job's record may not be there yet.
function operations.holders(name, grace, most)
  local found = {}
  local listed = redis.call('ZRANGE', holds(name), 0, most - 1, 'WITHSCORES')
  for i = 1, #listed, 2 do
    found[#found + 1] = listed[i]
    found[#found + 1] = int(listed[i + 1])
    found[#found + 1] = tonumber(listed[i + 1]) > now - grace and 1 or 0
  end
  return found
end

-- most: names of files whose time is over.
function operations.due(most) return redis.call('ZRANGEBYSCORE', EXPIRES, '-inf', int(now), 'LIMIT', 0, most) end

-- name, "force" or "": drop a file that nobody holds, and whose time is over (or by force). 0: it is held, or lives longer.
function operations.drop(name, force)
  local found = read(name)
  if not found[1] then
    redis.call('ZREM', EXPIRES, name)
    return 1
  end
  if redis.call('ZCARD', holds(name)) > 0 or (force == '' and tonumber(found[5]) > now) then return 0 end
  redis.call('DEL', file(name), holds(name))
  redis.call('ZREM', EXPIRES, name)
  local key, id = name:match('^(.*)/(.*)$')
  if key then redis.call('SREM', owners(id), key) end
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
