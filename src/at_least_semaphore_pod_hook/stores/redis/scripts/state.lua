-- Read a semaphore, or a piece of a large one.
--
-- KEYS[1] queue/{semaphore}   KEYS[2] inflight/{semaphore}   KEYS[3] inflight/{semaphore}/holders (see acquire.lua)
-- KEYS[4] queue/{semaphore}/denied
-- ARGV[1] the end of the lease (ms since the epoch) from which on holders are read, or '' for all   ARGV[2] how many
-- ARGV[3] the server's epoch
-- Returns {{length, now (ms), 1 where it surely has all holders}, {permit, JSON of its holder, ms left of its lease, ...}, {owner of denied pods, oldest first}}
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local reply = {}
local from = ARGV[1] ~= '' and ARGV[1] or '(' .. string.format('%.0f', now)
local leases = redis.call('ZRANGEBYSCORE', KEYS[2], from, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
for i = 1, #leases, 2 do
  reply[#reply + 1] = leases[i]
  reply[#reply + 1] = redis.call('HGET', KEYS[3], leases[i]) or '{}'
  reply[#reply + 1] = leases[i + 1] - now
end
local stored = redis.call('HMGET', KEYS[1], 'length', 'epoch')
return {
  {tonumber(stored[1] or '0'), now, stored[2] == ARGV[3] and 1 or 0},
  reply,
  redis.call('ZRANGE', KEYS[4], 0, 99),
}
