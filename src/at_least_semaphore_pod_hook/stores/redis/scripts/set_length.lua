-- Create a semaphore, or resize it, and note that it is complete.
--
-- KEYS[1] queue/{semaphore} (see acquire.lua)
-- ARGV[1] the fence's domain   ARGV[2] its token   ARGV[3] length
-- ARGV[4] the server's epoch
-- Returns 1; 0 where a newer step of the domain was here.
local newest = tonumber(redis.call('HGET', KEYS[1], 'fence:' .. ARGV[1]) or '0')
if tonumber(ARGV[2]) ~= newest then
  return 0
end
redis.call('HSET', KEYS[1], 'length', ARGV[3], 'epoch', ARGV[4])
redis.call('PEXPIRE', KEYS[1], 604800000)
return 1
