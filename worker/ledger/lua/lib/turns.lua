-- Fair sharing of a service between API keys (start-time fair queueing).
--
-- While jobs of API keys wait, a job's place is counted from its turn instead of its creation. Its turn is the turn of the
-- job claimed last or, if that is later, the end of the turns of the same key's queued jobs of this priority. Each input
-- takes STEP_US of this virtual time, so the next job of one key stands beside the next job of another key that has queued
-- a million. Virtual time begins as the clock's time and has its own speed: an input's step passes in the time that the
-- service needs for an input (its pace). A priority's offset is stretched by that speed, so that a job still moves up as it
-- ages. (With n keys that all have a backlog, virtual time passes n times slower.) The jobs without an API key share turns,
-- as if they belonged to one more key. While no job of an API key waits, there are no turns.
--@ include "base/keys_of_workers" "base/now"

-- The virtual time of an input.
local STEP_US = 1000
-- The pace of a service that has not run any input yet, in microseconds.
local DEFAULT_PACE_US = 1000
local TURNS = S .. 'turns'

-- The state of the turns in a call that takes several: last (nothing: there are no turns), pace and, once needed, speed.
local function read_turns()
  local last, pace = unpack(redis.call('HMGET', ABOUT, 'turn', 'pace'))
  return {last = tonumber(last), pace = tonumber(pace or DEFAULT_PACE_US)}
end

-- Gives the turn of a new job of this many inputs, and its priority's offset in virtual time; where the job's creation
-- counts, no turn and the offset as it is.
local function take_turn(fair, owner, priority, inputs, offset)
  if owner == '' and not fair.last then return nil, offset end
  fair.last = fair.last or now
  fair.speed = fair.speed or STEP_US * math.max(1, redis.call('ZCARD', WORKERS)) / fair.pace
  local line = owner .. ' ' .. priority
  local turn = math.max(fair.last, tonumber(redis.call('HGET', TURNS, line) or 0))
  redis.call('HSET', TURNS, line, turn + inputs * STEP_US)
  if turn == fair.last then  -- the next key that has nothing queued stands behind this job
    fair.last = turn + 1
    redis.call('HSET', ABOUT, 'turn', fair.last)
  end
  return turn, math.floor(offset * fair.speed)
end

-- The score of a queued job whose turn was taken before. The turns may have begun anew since then, at an earlier time.
local function not_later(key, score, turn)
  local last = tonumber(redis.call('HGET', ABOUT, 'turn') or now)
  if tonumber(turn) <= last then return score end
  score = score - (turn - last)
  redis.call('HSET', key, 'score', score, 'turn', last)
  return score
end
