-- Remove a lock that is still one's own.
--
-- KEYS[1] lock/{name}
-- ARGV[1] the random value that the lock was taken with
-- Returns 1; 0 where the lock is free, or another's.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
