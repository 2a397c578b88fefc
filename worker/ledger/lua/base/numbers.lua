-- Numbers as texts. Redis would write a Lua number with 17 digits, at the cost of a command.
--@ include "base/now"

local function int(number) return string.format('%.0f', number) end

-- The jobs of a call share this text.
local NOW = int(now)
