-- Forget that pods of an owner were denied: it has been woken, and its pods will be denied anew if they are.
--
-- KEYS[1] queue/{semaphore}   KEYS[2] inflight/{semaphore}   KEYS[3] inflight/{semaphore}/holders
-- KEYS[4] queue/{semaphore}/denied (see acquire.lua)
-- ARGV[1] owner
-- Returns 1; 0 where none was noted.
return redis.call('ZREM', KEYS[4], ARGV[1])
