--[[ seed: put back the newest event of a job whose stream has expired, so that it can go on.

KEYS   1 the job's stream
ARGV   1 when the archive was asked (server time, ms)   2 entry id, `<version>-0`
       then the entry's fields and values

Result 1 when it was put there, 0 when somebody else did or the answer is too old.

Atomic: the look and the write. An answer of the archive is good for a minute: what is read, put
aside, and written after the job has gone on and expired once more would give a version twice.
What is put back lives as long: an append makes it stay, and without one nobody would remove it.
What is there already lives no shorter, so that it does not expire before the append that asked.
]]
local GOOD_FOR_MS = 60000
if #KEYS ~= 1 or #ARGV < 4 or #ARGV % 2 ~= 0 then
  return redis.error_reply('HEADRACE seed: wrong number of keys or arguments')
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now - tonumber(ARGV[1]) > GOOD_FOR_MS then return 0 end
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('PEXPIRE', KEYS[1], GOOD_FOR_MS, 'GT')
  return 0
end
redis.call('XADD', KEYS[1], ARGV[2], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], GOOD_FOR_MS)
return 1
