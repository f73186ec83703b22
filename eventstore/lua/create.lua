--[[ create: make the log of a partition, once.

KEYS   1 meta   2 log   3 work:high   4 work:normal
ARGV   1 lineage   2 epoch   3 the server's run id   4 format   5 number of partitions
       6 seq of the last event there ever was

Result 'created', or the lineage that is there already, or 'orphaned' when a log without meta is.

Atomic: everything. Two processes that open at once: one creates, the other is told its lineage.
]]
if #KEYS ~= 4 or #ARGV ~= 6 then
  return redis.error_reply('HEADRACE create: wrong number of keys or arguments')
end
local lineage = redis.call('HGET', KEYS[1], 'lineage')
if lineage then return lineage end
if redis.call('EXISTS', KEYS[2]) == 1 then return 'orphaned' end
for _, work in ipairs({KEYS[3], KEYS[4]}) do
  if redis.call('EXISTS', work) == 0 then
    redis.call('XGROUP', 'CREATE', work, 'generators', '0', 'MKSTREAM')
  end
end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'lineage', ARGV[1], 'epoch', ARGV[2], 'seq', ARGV[6], 'run', ARGV[3],
  'opened', time[1] * 1000 + math.floor(time[2] / 1000), 'format', ARGV[4],
  'partitions', ARGV[5])
return 'created'
