-- The counts of batches.
--@ include "base/changes"

-- Operations on the chunks of a batch that go on page by page (lib/pages): batch -> "<kind> <next chunk> <offset_us>".
local PAGES = S .. 'pages'
-- Chunks of one page: Redis takes some 12 us for each (measured).
local PAGE = 1000

local function batch_of(group) return S .. 'batch:' .. group end

-- Adds the rows of a chunk to a count of its batch; nothing for a job that is no chunk.
local function count(group, field, rows)
  if group then redis.call('HINCRBY', batch_of(group), field, rows) end
end

-- Publishes, once in a call and only where somebody listens, that a batch has changed.
local reported = {}
local function report_batch(group)
  if reported[group] then return end
  reported[group] = true
  if redis.call('HGET', batch_of(group), 'watched') then changed[#changed + 1] = group end
end
