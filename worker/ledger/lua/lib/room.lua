-- Whether the queue as it stands has room.
--@ include "lib/limits"

-- The same answer as full. later: the inputs do not wait in the queue yet.
local function has_no_room(bytes, later)
  local most, most_bytes, waiting_bytes, parked = unpack(redis.call('HMGET', ABOUT,
    'max_queue_size', 'max_queue_bytes', 'waiting_bytes', 'parked'))
  return full(later and 0 or count_waiting(parked), tonumber(waiting_bytes or 0), bytes, most, most_bytes)
end
