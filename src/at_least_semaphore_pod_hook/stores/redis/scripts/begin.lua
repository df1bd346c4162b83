-- Let a step that holds the lock in, and shut out all older ones.
--
-- KEYS[1] queue/{semaphore}   KEYS[2] inflight/{semaphore} (see acquire.lua)
-- ARGV[1] the fence's domain   ARGV[2] its token, 0 to get the next one   ARGV[3] the server's epoch
-- Returns {1, token, length, held, 1 where it surely has all holders}; {0} where a newer step of the domain was here.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local field = 'fence:' .. ARGV[1]
local newest = tonumber(redis.call('HGET', KEYS[1], field) or '0')
local token = tonumber(ARGV[2])
if token == 0 then
  token = math.max(newest + 1, clock[1] * 1000000 + clock[2])
elseif token < newest then
  return {0}
end
local token_text = string.format('%.0f', token)
redis.call('HSET', KEYS[1], field, token_text)
redis.call('PEXPIRE', KEYS[1], 604800000)
local stored = redis.call('HMGET', KEYS[1], 'length', 'epoch')
local held = redis.call('ZCOUNT', KEYS[2], '(' .. string.format('%.0f', now), '+inf')
return {1, token_text, tonumber(stored[1] or '0'), held, stored[2] == ARGV[3] and 1 or 0}
