-- Read a semaphore.
--
-- KEYS[1] queue/{semaphore}   KEYS[2] inflight/{semaphore}   KEYS[3] inflight/{semaphore}/holders (see acquire.lua)
-- KEYS[4] queue/{semaphore}/denied
-- Returns {{length, now (ms)}, {permit, JSON of its holder, ms left of its lease, ...}, {owner of denied pods, oldest first}}
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local reply = {}
local leases = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. string.format('%.0f', now), '+inf', 'WITHSCORES')
for i = 1, #leases, 2 do
  reply[#reply + 1] = leases[i]
  reply[#reply + 1] = redis.call('HGET', KEYS[3], leases[i]) or '{}'
  reply[#reply + 1] = leases[i + 1] - now
end
return {
  {tonumber(redis.call('HGET', KEYS[1], 'length') or '0'), now},
  reply,
  redis.call('ZRANGE', KEYS[4], 0, 99),
}
