-- The records of files; their bytes are in the storage (storage.py), never in Redis.
--
-- KEYS[1] "{.files}:expires"; no service's name can be ".files". ARGV: operation, then its own.
--
-- Each API key has its own files: the same content sent with two keys is two files, each with its own blob, lifetime and
-- holders, so that no key learns which files another key has. A file's name is "<sha256>" where it belongs to no key, else
-- "<key>/<sha256>"; its id, which clients see, is the sha256 alone.
--
-- Keys, all in the slot of the hash tag F = "{.files}":
--   F:file:<name>     hash    blob (its name in the storage), size, type, created, expires, filename (that the last upload
--                             gave it; "" or missing where it gave none)
--   F:owners:<sha256> set     API keys that have a file of this content
--   F:expires         zset    every file's name by the time at which it is dropped
--   F:holds:<name>    zset    "<service>/<job>" by the time of its acceptance: jobs whose input names the file. A job that
--                             has ended is taken out when the holders are read (async_store.py), not at its end
--   F:blobs           zset    blobs that belong to no file, by the time at which they may be removed: uploads on their way,
--                             and the blobs of dropped files
--   F:secret          string  the secret that signs download links (written by async_store.py)
--
-- A blob's name is used once, so the removal of a blob never meets a new upload of the same content. All times are
-- microseconds by Redis's own clock. A file exists as long as its record does.

local F = '{.files}:'
local EXPIRES, BLOBS = KEYS[1], F .. 'blobs'
local operation = ARGV[1]

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function file(name) return F .. 'file:' .. name end
local function holds(name) return F .. 'holds:' .. name end
local function owners(id) return F .. 'owners:' .. id end
local function int(number) return string.format('%.0f', number) end

-- The record {blob, size, type, created, expires, filename}; {} where there is none.
local function read(name)
  local values = redis.call('HMGET', file(name), 'blob', 'size', 'type', 'created', 'expires', 'filename')
  return values[1] and values or {}
end

-- The files of an id that an API key sees, each {name, its record's values …}; key empty: the files of all keys, after the
-- file that belongs to no key.
local function find(id, key)
  local names, files = {key == '' and id or key .. '/' .. id}, {}
  if key == '' then
    local keys = redis.call('SMEMBERS', owners(id))
    table.sort(keys)
    for _, other in ipairs(keys) do names[#names + 1] = other .. '/' .. id end
  end
  for _, name in ipairs(names) do
    local values = read(name)
    if values[1] then files[#files + 1] = {name, unpack(values, 1, 6)} end
  end
  return files
end

local function live_until(name, least)
  if tonumber(redis.call('HGET', file(name), 'expires')) < least then
    redis.call('HSET', file(name), 'expires', int(least))
    redis.call('ZADD', EXPIRES, int(least), name)
  end
end

local function is_expected(blob)
  local until_us = redis.call('ZSCORE', BLOBS, blob)
  return until_us and tonumber(until_us) > now
end

local operations = {}

-- blob, us, new ("new", "output" or ""): an upload or the storing of an output begins, or goes on and extends its time. 0
-- where its time was over.
function operations.open(blob, us, new)
  if new == '' and not is_expected(blob) then return 0 end
  redis.call('ZADD', BLOBS, int(now + us), blob)
  return 1
end

-- blob, name, size, kind, keep_us, lost, filename: the upload is complete; filename may be empty. Gives {outcome, record}:
-- "new" (also for a repeated call); "known": the content is there already, in a blob other than the lost one; "late": the
-- blob's time is over, so it may be gone.
function operations.bind(blob, name, size, kind, keep, lost, filename)
  local known_blob, _, known_kind = unpack(read(name), 1, 3)
  if known_blob ~= blob then
    if not is_expected(blob) then return {'late', {}} end
    if filename ~= '' then redis.call('HSET', file(name), 'filename', filename) end
    if known_blob and known_blob ~= lost then
      if known_kind == 'application/octet-stream' then redis.call('HSET', file(name), 'type', kind) end
      live_until(name, now + keep)
      return {'known', read(name)}
    end
    redis.call('HSET', file(name), 'blob', blob, 'size', size, 'type', kind)
    if not known_blob then redis.call('HSET', file(name), 'created', int(now), 'expires', 0) end
    local key, id = name:match('^(.*)/(.*)$')
    if key then redis.call('SADD', owners(id), key) end
    redis.call('ZREM', BLOBS, blob)
  end
  live_until(name, now + keep)
  return {'new', read(name)}
end

-- blob: it is not needed, unless it was bound (by a call whose answer was lost). The sweep removes it.
function operations.release(blob)
  if redis.call('ZSCORE', BLOBS, blob) then redis.call('ZADD', BLOBS, int(now), blob) end
end

-- name, keep_us: the file lives at least this long from now. Gives its record.
function operations.keep(name, keep)
  local values = read(name)
  if values[1] then live_until(name, now + keep) end
  return values
end

-- key, id …: for each id the files that this API key sees, as find gives them.
function operations.find(key, ...)
  local files = {}
  for i, id in ipairs({...}) do files[i] = find(id, key) end
  return files
end

-- holder, grace_us, key (the job's API key; empty: none, such a job may use the files of all), id …: a job is about to be
-- accepted, or to run again, whose input names these files. Gives for each id the file as find gives it, with the number of
-- its holders, or {}. Each file lives on for the grace at least; by then the job's record is there to be looked at.
function operations.hold(holder, grace, key, ...)
  local files = {}
  for i, id in ipairs({...}) do
    local values = find(id, key)[1] or {}
    local name = values[1]
    if name then
      redis.call('ZADD', holds(name), int(now), holder)
      live_until(name, now + grace)
      values[8] = redis.call('ZCARD', holds(name))
    end
    files[i] = values
  end
  return files
end

-- name, grace_us, most: the oldest holders, for each its id, the time of its acceptance, and 1 where it is so young that its
-- job's record may not be there yet, else 0.
function operations.holders(name, grace, most)
  local holders = {}
  local listed = redis.call('ZRANGE', holds(name), 0, most - 1, 'WITHSCORES')
  for i = 1, #listed, 2 do
    local holder, since = unpack(listed, i, i + 1)
    holders[#holders + 1] = holder
    holders[#holders + 1] = int(since)
    holders[#holders + 1] = tonumber(since) > now - grace and 1 or 0
  end
  return holders
end

-- most: names of files whose time is over.
function operations.due(most) return redis.call('ZRANGEBYSCORE', EXPIRES, '-inf', int(now), 'LIMIT', 0, most) end

-- name, force ("force" or ""): drops a file that no job holds, and whose time is over (or by force). 0: it is held, or lives
-- longer.
function operations.drop(name, force)
  local blob, _, _, _, expires = unpack(read(name), 1, 5)
  if not blob then
    redis.call('ZREM', EXPIRES, name)
    return 1
  end
  if redis.call('ZCARD', holds(name)) > 0 or (force == '' and tonumber(expires) > now) then return 0 end
  redis.call('DEL', file(name), holds(name))
  redis.call('ZREM', EXPIRES, name)
  local key, id = name:match('^(.*)/(.*)$')
  if key then redis.call('SREM', owners(id), key) end
  redis.call('ZADD', BLOBS, int(now), blob)
  return 1
end

-- most: blobs to remove from the storage, and then by ZREM from here.
function operations.orphans(most) return redis.call('ZRANGEBYSCORE', BLOBS, '-inf', int(now), 'LIMIT', 0, most) end

-- A full Redis lets a script go on that has begun with a write that needs no memory (see allow_when_full.lua): accepted jobs
-- must come to their end, and files must be removed. Only new uploads and new jobs are refused.
if operation ~= 'hold' and ARGV[4] ~= 'new' then redis.call('DEL', F .. 'nothing') end

return operations[operation](unpack(ARGV, 2))
