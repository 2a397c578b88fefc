-- Events for webhooks. The end of a job or a batch goes to the outbox in the step that writes it, with the record as it
-- stands, so the event describes that end even if the record changes later.
--@ include "base/keys"

-- Bytes of a field; a longer one is left out of the event.
local MAX_EVENT_VALUE = 262144

-- kind: "job" or "batch"; webhook: the record's field, whose "events" (none: all) name the events that are wanted.
local function announce(kind, id, key, webhook, event)
  local events = cjson.decode(webhook).events
  for i, wanted in ipairs(events or {event}) do
    if wanted == event then break end
    if i == #events then return end
  end
  local fields = {}
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if field ~= 'input' and field ~= 'history' and redis.call('HSTRLEN', key, field) <= MAX_EVENT_VALUE then
      fields[#fields + 1] = field
      fields[#fields + 1] = redis.call('HGET', key, field)
    end
  end
  redis.call('XADD', S .. 'outbox', '*', 'kind', kind, 'id', id, 'type', event, 'record', cjson.encode(fields))
end
