--[[ release: a worker hands a job back unfinished; the next one may take it at once.

KEYS   1 runs   2 the work stream of the job's class   3 bell
ARGV   1 job   2 owner   3 attempt

Result 1 when it was handed back, 0 when it was not this owner's any more.

Atomic: everything. Its entry stays where it is, with the consumer `-`, and counts as silent since
the beginning of time: it is given out before all new work, also right after the log was opened. The
attempt stays, so that the next claim counts on from it; the delivery is taken back, for a drain is
not the job's fault.
]]
if #KEYS ~= 3 or #ARGV ~= 3 then
  return redis.error_reply('HEADRACE release: wrong number of keys or arguments')
end
local run = redis.call('HGET', KEYS[1], ARGV[1])
if not run then return 0 end
local tenant, class, entry, owner, attempt, deliveries =
  string.match(run, '^(%S+) (%S+) (%S+) (%S+) (%d+) (%d+)$')
if owner ~= ARGV[2] or attempt ~= ARGV[3] then return 0 end
redis.call('XLEN', KEYS[3])
redis.call('XCLAIM', KEYS[2], 'generators', '-', 0, entry, 'TIME', 1, 'JUSTID')
redis.call('HSET', KEYS[1], ARGV[1],
  table.concat({tenant, class, entry, '-', attempt, math.max(0, deliveries - 1)}, ' '))
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 'job', ARGV[1], 'what', 'queued')
return 1
