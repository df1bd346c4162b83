-- Give a permit back.
--
-- KEYS[1] queue/{semaphore}   KEYS[2] inflight/{semaphore}   KEYS[3] inflight/{semaphore}/holders (see acquire.lua)
-- ARGV[1] permit
-- Returns 1; 0 where the permit is not held.
redis.call('HDEL', KEYS[3], ARGV[1])
return redis.call('ZREM', KEYS[2], ARGV[1])
