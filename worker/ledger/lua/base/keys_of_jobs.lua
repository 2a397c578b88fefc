-- Keys that belong to single jobs, and the lists of all jobs.
--@ include "base/keys"

local EXPIRES, OWNED_EXPIRES, DEADLINES = S .. 'expires', S .. 'owned:expires', S .. 'deadlines'

local function seen(id) return S .. 'seen:' .. id end
local function promise_of(hash) return S .. 'idempotency:' .. hash end
local function said(id) return S .. 'said:' .. id end
local function partial(id) return S .. 'partial:' .. id end
