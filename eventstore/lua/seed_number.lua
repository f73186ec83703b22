--[[ seed_number: put back the number of a project's newest build, read from archive and log.

KEYS   1 meta   2 builds
ARGV   1 where the log was cut last when they were read, '' if never   2 <tenant>/<project>
       3 number

Result the number that is there now, nothing when the log was cut meanwhile: read again

Atomic: the looks and the write. While the number is absent no build of the project becomes READY;
only a cut takes one away that was put back meanwhile, and ours would then be given out twice.
]]
if #KEYS ~= 2 or #ARGV ~= 3 then
  return redis.error_reply('HEADRACE seed_number: wrong number of keys or arguments')
end
local number = redis.call('HGET', KEYS[2], ARGV[2])
if not number and (redis.call('HGET', KEYS[1], 'cut') or '') == ARGV[1] then
  number = ARGV[3]
  redis.call('HSET', KEYS[2], ARGV[2], number)
end
return number
