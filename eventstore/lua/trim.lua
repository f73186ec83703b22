--[[ trim: cut the beginning of a log that is archived, and let the streams of its ended jobs expire.

KEYS   1 meta   2 log   3 runs   4 builds   5… the streams of the jobs named in the part to cut
ARGV   1 lineage   2 the server it was verified on
       3 first entry id to keep   4 time to live of a job's stream in ms
       then for each of KEYS 5…: job, its version in the part to cut, <tenant>/<project>

Result {'ok', entries cut, streams that will expire} | {'refused', reason}

Atomic: everything. A stream expires only if the job has ended and has said nothing since: each
later append takes the time to live away again. The project's build number goes with it, and is
read from the archive when it is asked for. Whoever dies before this cut finds the same part again.
]]
-- include: seal
if #KEYS < 4 or #ARGV ~= 4 + (#KEYS - 4) * 3 then
  return redis.error_reply('HEADRACE trim: wrong number of keys or arguments')
end
local meta = redis.call('HMGET', KEYS[1], 'lineage', 'run')
local refusal = unsealed(meta[1], meta[2])
if refusal then return refusal end
-- A key of the wrong type is met before anything is written.
redis.call('XLEN', KEYS[2])
redis.call('HLEN', KEYS[3])
redis.call('HLEN', KEYS[4])
for i = 5, #KEYS do redis.call('XLEN', KEYS[i]) end
local expiring = 0
for i = 5, #KEYS do
  local base = 4 + (i - 5) * 3
  local newest = redis.call('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)[1]
  local version = newest and string.match(newest[1], '^(%d+)-')
  if version == ARGV[base + 2] and redis.call('HEXISTS', KEYS[3], ARGV[base + 1]) == 0 then
    redis.call('PEXPIRE', KEYS[i], ARGV[4])
    redis.call('HDEL', KEYS[4], ARGV[base + 3])
    expiring = expiring + 1
  end
end
redis.call('HSET', KEYS[1], 'cut', ARGV[3])
return {'ok', redis.call('XTRIM', KEYS[2], 'MINID', ARGV[3]), expiring}
