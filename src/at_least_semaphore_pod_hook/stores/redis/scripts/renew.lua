#!lua flags=allow-oom
-- Extend a permit's lease and note who holds it. Allowed when the store is out of memory: it takes next to none, and a
-- renewal that is refused would end in a permit that is given twice.
--
-- KEYS[1] queue/{semaphore}   KEYS[2] inflight/{semaphore}   KEYS[3] inflight/{semaphore}/holders
-- KEYS[5] inflight/{semaphore}/ended (see acquire.lua)
-- ARGV[1] permit   ARGV[2] the holding pod's name, or ''
-- ARGV[3] the pod's UID where it is not its sidecar that renews but who watches pods: the pod exists, no more is known
-- ARGV[4] '1' where it is the sidecar, and name and UID are shown to be its own
-- Returns the lease in ms; 0 where the permit is not held, or was confirmed by a pod of another name; -1 to a sidecar
-- whose permit is not held because its pod has ended; -2 with ARGV[4] where it is another pod's.
-- Whether the permit is another pod's than the one that has shown its name and its UID (holding.py has the same).
local function is_of_another(holder, pod, uid)
  if holder.uid ~= '' then
    return holder.uid ~= uid
  end
  if not holder.confirmed and string.sub(holder.pod, -1) == '*' then
    local reserved = string.sub(string.sub(holder.pod, 1, -2), 1, 58)
    return string.sub(pod, 1, #reserved) ~= reserved
  end
  return holder.pod ~= pod and (holder.confirmed or holder.pod ~= '')
end
local clock = redis.call('TIME')
local watcher = ARGV[3] and not ARGV[4]
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local stored = redis.call('HGET', KEYS[3], ARGV[1])
local lease_end = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not stored or not lease_end then
  local noted = not watcher and redis.call('ZSCORE', KEYS[5], ARGV[1])
  return noted and tonumber(noted) > now - 3600000 and -1 or 0
end
local holder = cjson.decode(stored)
if ARGV[4] then
  if is_of_another(holder, ARGV[2], ARGV[3]) then
    return -2
  end
elseif holder.confirmed and ARGV[2] ~= '' and holder.pod ~= ARGV[2] then
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
holder.uid = ARGV[3] or holder.uid
if not watcher then
  holder.confirmed = true
  holder.renewed = now
end
holder.pod = ARGV[2] ~= '' and ARGV[2] or holder.pod
redis.call('HSET', KEYS[3], ARGV[1], cjson.encode(holder))
redis.call('ZADD', KEYS[2], 'XX', now + holder.lease, ARGV[1])
redis.call('PEXPIRE', KEYS[1], 604800000)
return holder.lease
