-- The token of a claim is "<pool process>.<number>": the number counts the claims of the process, from 0.
--@ include "base/keys"

local function process_of(token) return token:match('^(.*)%.%d+$') or token end

local function busy_key(worker) return S .. 'busy:' .. worker end
