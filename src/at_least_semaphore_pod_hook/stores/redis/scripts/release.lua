#!lua flags=allow-oom
-- Give a permit back, and note that its pod has ended where that is known. Allowed when the store is out of memory: it
-- takes next to none, and nobody comes back to note it later.
--
-- KEYS[1] queue/{semaphore}   KEYS[2] inflight/{semaphore}   KEYS[3] inflight/{semaphore}/holders
-- KEYS[5] inflight/{semaphore}/ended (see acquire.lua)
-- ARGV[1] permit   ARGV[2] the name of the pod that gives it back, or ''
-- ARGV[3] '1' to note for an hour that the pod's other containers have ended, whether it holds the permit or not
-- ARGV[4] the pod's UID where name and UID are shown to be its own, or ''
-- Returns 1; 0 where the permit is not held, or was confirmed by a pod of another name, of which nothing is noted; with
-- ARGV[4] -2 where it is another pod's. What is left of an expired permit goes as well, so that no renewal revives it.
-- Whoever waits hears of it on the channel that is named as KEYS[1].
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
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local stored = ARGV[2] ~= '' and redis.call('HGET', KEYS[3], ARGV[1])
if stored then
  local holder = cjson.decode(stored)
  if (ARGV[4] or '') ~= '' then
    if is_of_another(holder, ARGV[2], ARGV[4]) then
      return -2
    end
  elseif holder.confirmed and holder.pod ~= ARGV[2] then
    return 0
  end
end
local lease_end = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or '0')
redis.call('HDEL', KEYS[3], ARGV[1])
if redis.call('ZREM', KEYS[2], ARGV[1]) == 1 then
  redis.call('PUBLISH', KEYS[1], 'released')
end
if ARGV[3] == '1' then
  redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now - 3600000)
  redis.call('ZADD', KEYS[5], now, ARGV[1])
  redis.call('PEXPIRE', KEYS[5], 3600000)
end
return lease_end > now and 1 or 0
