--[[ seed_number: put back the number of a project's newest build, read from archive and log.

KEYS   1 builds
ARGV   1 when they were read (server time, ms)   2 <tenant>/<project>   3 number

Result 1 when it was put there, 0 when somebody else did or the answer is too old (see seed).

Atomic: the look and the write. While the number is absent no build of the project becomes READY.
]]
local GOOD_FOR_MS = 60000
if #KEYS ~= 1 or #ARGV ~= 3 then
  return redis.error_reply('HEADRACE seed_number: wrong number of keys or arguments')
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now - tonumber(ARGV[1]) > GOOD_FOR_MS then return 0 end
return redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[3])
