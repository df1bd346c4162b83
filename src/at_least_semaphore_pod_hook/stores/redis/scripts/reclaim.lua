-- Take expired permits back.
--
-- KEYS[1] queue/{semaphore}   KEYS[2] inflight/{semaphore}   KEYS[3] inflight/{semaphore}/holders (see acquire.lua)
-- ARGV[1] how many at most
-- Returns how many were taken back.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local permits = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, permit in ipairs(permits) do
  redis.call('ZREM', KEYS[2], permit)
  redis.call('HDEL', KEYS[3], permit)
end
return #permits
