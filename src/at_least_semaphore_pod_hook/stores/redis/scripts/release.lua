-- Give a permit back.
--
-- KEYS[1] queue/{semaphore}   KEYS[2] inflight/{semaphore}   KEYS[3] inflight/{semaphore}/holders (see acquire.lua)
-- ARGV[1] permit   ARGV[2] the name of the pod that gives it back, or ''
-- Returns 1; 0 where the permit is not held, or was confirmed by a pod of another name.
-- Whoever waits hears of it on the channel that is named as KEYS[1].
local stored = ARGV[2] ~= '' and redis.call('HGET', KEYS[3], ARGV[1])
if stored then
  local holder = cjson.decode(stored)
  if holder.confirmed and holder.pod ~= ARGV[2] then
    return 0
  end
end
redis.call('HDEL', KEYS[3], ARGV[1])
local released = redis.call('ZREM', KEYS[2], ARGV[1])
if released == 1 then
  redis.call('PUBLISH', KEYS[1], 'released')
end
return released
