-- Read the version that the data is marked with, or mark it, unless it is marked with a later one.
--
-- KEYS[1] queue/version   ARGV[1] the version, 0 to change nothing
-- Returns the mark as it is now, empty where there is none. What is no number stays as it is.
local found = redis.call('GET', KEYS[1]) or ''
local version = tonumber(ARGV[1])
if version == 0 then
  return found
end
if found == '' or (tonumber(found) and tonumber(found) < version) then
  found = ARGV[1]
end
redis.call('SET', KEYS[1], found)
return found
