-- The number in a token.

local function number_of(token) return tonumber(token:match('%.(%d+)$') or 0) end
