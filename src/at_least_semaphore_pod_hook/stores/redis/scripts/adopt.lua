-- Put holders back that the store has lost.
--
-- KEYS[1] queue/{semaphore}   KEYS[2] inflight/{semaphore}   KEYS[3] inflight/{semaphore}/holders (see acquire.lua)
-- ARGV[1] the fence's domain   ARGV[2] its token
-- ARGV[3...] for each: permit, pod, UID, fencing token of its grant or 0, lease (ms)
-- Returns how many were put back; -1 where a newer step of the domain was here.
local newest = tonumber(redis.call('HGET', KEYS[1], 'fence:' .. ARGV[1]) or '0')
if tonumber(ARGV[2]) ~= newest then
  return -1
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local last = tonumber(redis.call('HGET', KEYS[1], 'token') or '0')
local lost = {}
for i = 3, #ARGV, 5 do
  if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[i]) or '0') <= now then
    lost[#lost + 1] = i
    last = math.max(last, tonumber(ARGV[i + 3]))
  end
end
for _, i in ipairs(lost) do
  local token = tonumber(ARGV[i + 3])
  if token == 0 then
    last = math.max(last + 1, clock[1] * 1000000 + clock[2])
    token = last
  end
  local lease = tonumber(ARGV[i + 4])
  redis.call('ZADD', KEYS[2], now + lease, ARGV[i])
  redis.call('HSET', KEYS[3], ARGV[i], cjson.encode({
    identity = ARGV[i + 2], pod = ARGV[i + 1], token = string.format('%.0f', token),
    lease = lease, granted = now, renewed = 0, uid = ARGV[i + 2], confirmed = false,
  }))
end
redis.call('HSET', KEYS[1], 'token', string.format('%.0f', last))
redis.call('PEXPIRE', KEYS[1], 604800000)
return #lost
