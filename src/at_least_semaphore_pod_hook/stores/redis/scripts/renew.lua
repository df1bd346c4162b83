#!lua flags=allow-oom
-- Extend a permit's lease and note who holds it. Allowed when the store is out of memory: it takes next to none, and a
-- renewal that is refused would end in a permit that is given twice.
--
-- KEYS[1] queue/{semaphore}   KEYS[2] inflight/{semaphore}   KEYS[3] inflight/{semaphore}/holders
-- KEYS[5] inflight/{semaphore}/ended (see acquire.lua)
-- ARGV[1] permit   ARGV[2] the holding pod's name, or ''
-- ARGV[3] the pod's UID where it is not its sidecar that renews but who watches pods: the pod exists, no more is known
-- Returns the lease in ms; 0 where the permit is not held, or was confirmed by a pod of another name; -1 to a sidecar
-- whose permit is not held because its pod has ended.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local stored = redis.call('HGET', KEYS[3], ARGV[1])
local lease_end = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not stored or not lease_end then
  local noted = not ARGV[3] and redis.call('ZSCORE', KEYS[5], ARGV[1])
  return noted and tonumber(noted) > now - 3600000 and -1 or 0
end
local holder = cjson.decode(stored)
if holder.confirmed and ARGV[2] ~= '' and holder.pod ~= ARGV[2] then
  return 0
end
if tonumber(lease_end) <= now then
  -- Expired, and nobody took it back yet: it may go on unless its place is taken.
  local length = tonumber(redis.call('HGET', KEYS[1], 'length') or '0')
  local held = redis.call('ZCOUNT', KEYS[2], '(' .. string.format('%.0f', now), '+inf')
  if held >= length then
    return 0
  end
end
if ARGV[3] then
  holder.uid = ARGV[3]
else
  holder.confirmed = true
  holder.renewed = now
end
holder.pod = ARGV[2] ~= '' and ARGV[2] or holder.pod
redis.call('HSET', KEYS[3], ARGV[1], cjson.encode(holder))
redis.call('ZADD', KEYS[2], 'XX', now + holder.lease, ARGV[1])
redis.call('PEXPIRE', KEYS[1], 604800000)
return holder.lease
