-- The attempts of a job that did not succeed: the answer to GET /jobs/<id>?include=attempts.
--@ include "base/numbers" "base/keys"

-- Bytes of a job's history; the oldest attempts are forgotten first.
local MAX_HISTORY = 32768

-- Adds the line of an attempt. charged: whether it counts against max_attempts; problem: an error as JSON, or nil.
local function note_attempt(id, outcome, charged, problem)
  local key = record(id)
  local attempt, started, worker, token, batch_size, version, history = unpack(redis.call('HMGET', key,
    'attempt', 'started', 'worker', 'token', 'batch_size', 'version', 'history'))
  local line = '{"attempt":' .. attempt .. ',"outcome":"' .. outcome .. '","charged":' .. tostring(charged)
    .. ',"started_us":' .. (started or '0') .. ',"ended_us":' .. NOW .. ',"worker":' .. cjson.encode(worker or '')
    .. ',"batch":' .. cjson.encode(token or '') .. ',"batch_size":' .. (batch_size or 'null')
    .. ',"version":' .. cjson.encode(version or '') .. ',"error":' .. (problem or 'null') .. '}'
  history = history and (history .. '\n' .. line) or line
  while #history > MAX_HISTORY and history:find('\n', 1, true) do
    history = history:sub(history:find('\n', 1, true) + 1)
  end
  redis.call('HSET', key, 'history', history)
end
