--[[ release: a worker hands a job back unfinished; the next one may take it at once.

KEYS   1 runs   2 the work stream of the job's class
ARGV   1 job   2 owner   3 attempt

Result 1 when it was handed back, 0 when it was not this owner's any more.

Atomic: everything. The entry stays pending and is made to look long idle, which is how a claim
finds it; the attempt stays, so that the next claim counts on from it.
]]
if #KEYS ~= 2 or #ARGV ~= 3 then
  return redis.error_reply('HEADRACE release: wrong number of keys or arguments')
end
local run = redis.call('HGET', KEYS[1], ARGV[1])
if not run then return 0 end
local tenant, class, entry, owner, attempt = string.match(run, '^(%S+) (%S+) (%S+) (%S+) (%d+)$')
if owner ~= ARGV[2] or attempt ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], table.concat({tenant, class, entry, '-', attempt}, ' '))
redis.call('XCLAIM', KEYS[2], 'generators', owner, 0, entry, 'IDLE', 2147483647, 'JUSTID')
return 1
