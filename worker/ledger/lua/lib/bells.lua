-- Our messages in the service's Celery queue. A message announces that a job waits; it carries no data.
--@ include "base/keys"

-- Our messages begin with this text (messages.py); another producer's message cannot begin with it, with any content.
local OURS = '{"libs_service"'

local function bell(id) return OURS .. ':1,"id":' .. cjson.encode(id) .. '}' end

local function ring(id) redis.call('LPUSH', service, bell(id)) end
