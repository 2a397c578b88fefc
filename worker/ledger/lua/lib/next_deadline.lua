-- The earlier of two deadlines, each 0 where there is none.

local function next_deadline(start_by, finish_by)
  if start_by > 0 and finish_by > 0 then return math.min(start_by, finish_by) end
  return math.max(start_by, finish_by)
end
