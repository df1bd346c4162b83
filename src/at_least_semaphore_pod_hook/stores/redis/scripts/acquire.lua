-- Grant a permit, resume a fresh reservation, or say why not. Repeating it is harmless.
--
-- KEYS[1] queue/{semaphore}             hash: length, token (fencing token of the last grant), fence:<domain>, epoch (in
--                                       which its holders were last known to be complete)
-- KEYS[2] inflight/{semaphore}          sorted set: permit -> end of its lease, ms since the epoch
-- KEYS[3] inflight/{semaphore}/holders  hash: permit -> JSON: identity, pod, uid, token, lease (ms), granted (ms),
--                                       renewed (ms), confirmed
-- KEYS[4] queue/{semaphore}/denied      sorted set: owner of denied pods -> when it was first denied, ms since the epoch
-- KEYS[5] inflight/{semaphore}/ended    sorted set: permit whose pod has ended -> when that was noted, ms since the epoch
-- ARGV[1] permit to grant   ARGV[2] permit that the pod carries, or ''   ARGV[3] identity   ARGV[4] pod
-- ARGV[5] expected length, 0 for any   ARGV[6] lease, ms   ARGV[7] how long a reservation is fresh, ms
-- ARGV[8] '1' for a dry run: nothing is written   ARGV[9] in a dry run: the length to assume, 0 for the stored one
-- ARGV[10] the pod's owner, noted where it is denied, or ''   ARGV[11] the pod's UID where it was seen in the API, or ''
-- ARGV[12] the server's epoch
-- Returns {outcome, length, held, permit, token, pod of a holder ...}
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local dry_run = ARGV[8] == '1'
local stored = redis.call('HMGET', KEYS[1], 'length', 'token', 'epoch')
local length = dry_run and tonumber(ARGV[9]) or 0
if length == 0 then
  length = tonumber(stored[1] or '0')
end
local expected = tonumber(ARGV[5])

local expired = redis.call('ZCOUNT', KEYS[2], '-inf', now)
local held = redis.call('ZCARD', KEYS[2]) - expired

local function held_under(permit)
  local record = permit ~= '' and redis.call('HGET', KEYS[3], permit)
  if record and tonumber(redis.call('ZSCORE', KEYS[2], permit) or '0') > now then
    return cjson.decode(record)
  end
end
-- To resume changes nothing, and yet it writes: WAIT is about what its own connection wrote last, and the grant may have
-- been another one's.
local function written()
  if not dry_run then
    redis.call('PEXPIRE', KEYS[1], 604800000)
  end
end
local carried = held_under(ARGV[2])
if carried and not carried.confirmed and carried.uid == '' and carried.identity == ARGV[3]
    and now - carried.granted < tonumber(ARGV[7]) then
  written()
  return {'resumed', length, held, ARGV[2], carried.token}
end
local own = held_under(ARGV[1])
if own and own.identity == ARGV[3] then
  written()
  return {'resumed', length, held, ARGV[1], own.token}
end

if length == 0 or (expected ~= 0 and expected ~= length) then
  return {'other_length', length, held}
end
if (stored[3] or '') ~= ARGV[12] and not dry_run then
  return {'incomplete', length, held}
end

if held >= length or own then
  if ARGV[10] ~= '' and not dry_run then
    redis.call('ZADD', KEYS[4], 'NX', now, ARGV[10])
    redis.call('ZREMRANGEBYRANK', KEYS[4], 1000, -1)
    redis.call('PEXPIRE', KEYS[4], 604800000)
  end
  local reply = {'full', length, held, '', '0'}
  local permits = redis.call('ZREVRANGEBYSCORE', KEYS[2], '+inf', '(' .. string.format('%.0f', now), 'LIMIT', 0, 3)
  for _, permit in ipairs(permits) do
    local record = redis.call('HGET', KEYS[3], permit)
    reply[#reply + 1] = record and cjson.decode(record).pod or ''
  end
  return reply
end

-- Counted in microseconds of the server's time, so that tokens go on rising even when the store has lost its data.
local token = math.max(tonumber(stored[2] or '0') + 1, clock[1] * 1000000 + clock[2])
local token_text = string.format('%.0f', token)
if dry_run then
  return {'granted', length, held + 1, ARGV[1], token_text}
end

-- What is expired counts as free already; it is tidied up a little at a time, so that no call takes long.
if expired > 0 then
  for _, permit in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)) do
    redis.call('ZREM', KEYS[2], permit)
    redis.call('HDEL', KEYS[3], permit)
  end
end
if ARGV[10] ~= '' then
  redis.call('ZREM', KEYS[4], ARGV[10])
end
redis.call('HSET', KEYS[1], 'token', token_text)
redis.call('ZREM', KEYS[5], ARGV[1])
redis.call('ZADD', KEYS[2], now + ARGV[6], ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], cjson.encode({
  identity = ARGV[3], pod = ARGV[4], token = token_text,
  lease = tonumber(ARGV[6]), granted = now, renewed = 0, uid = ARGV[11], confirmed = false,
}))
-- A semaphore that nobody has used for a week is forgotten; its next pod creates it again.
redis.call('PEXPIRE', KEYS[1], 604800000)
return {'granted', length, held + 1, ARGV[1], token_text}
