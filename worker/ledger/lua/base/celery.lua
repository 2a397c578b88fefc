-- Results as stock Celery writes them, for producers that read them through Celery's Redis backend.
--
-- ARGV[3] is the date of this call; after "all " where every job has such a result (SERVICES_CELERY_RESULTS=all), not only
-- a job that came as a Celery message. It is empty in a Redis Cluster, where Celery's keys lie on other nodes and are left
-- alone.
--@ include "base/keys"

local date = ARGV[3]:match('%S*$')
local HAS_CELERYS_KEYS = date ~= ''

-- Stores a result and publishes it, as Celery's backend would have done.
local function write_celery_result(id, status, value, keep_ms)
  if not HAS_CELERYS_KEYS then return end
  local state, result = 'SUCCESS', value
  if status == 'failed' then
    local problem = cjson.decode(value)
    local class = ('_' .. problem.code):gsub('_(%l)', string.upper)
    state = 'FAILURE'
    result = cjson.encode({exc_type = class, exc_message = {problem.message}, exc_module = 'worker.errors'})
  elseif status ~= 'succeeded' then
    state = 'REVOKED'
    result = cjson.encode({exc_type = 'TaskRevokedError', exc_message = {status}, exc_module = 'celery.exceptions'})
  end
  local meta = '{"status":"' .. state .. '","result":' .. result .. ',"traceback":null,"children":[],"date_done":"'
    .. date .. '","task_id":' .. cjson.encode(id) .. '}'
  redis.call('SET', 'celery-task-meta-' .. id, meta, 'PX', keep_ms)
  redis.call('PUBLISH', 'celery-task-meta-' .. id, meta)
end
