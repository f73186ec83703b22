--[[ requeue: queue a job that has not ended and stands in no queue, with the attempt it had.

KEYS   1 meta   2 runs   3 bell   4 tenants   5 caps   6 waiting:<tenant>   7 work:high
       8 work:normal   9 cancelling
ARGV   1 lineage   2 the server it was verified on
       3 job   4 tenant   5 project   6 class   7 attempt   8 seq of its first event
       9 cap of a tenant without one of its own
       10 1 when it is being cancelled, otherwise 0

Result {'ok', 1 when it was queued and 0 when it is in a queue already} | {'refused', reason}

Atomic: everything. It waits behind its tenant's cap like any other job, but for one that is being
cancelled: all that is left of it is to say so, and nobody waits for another's slot for that.
]]
-- include: seal
-- include: admission
if #KEYS ~= 9 or #ARGV ~= 10 then
  return redis.error_reply('HEADRACE requeue: wrong number of keys or arguments')
end
local meta = redis.call('HMGET', KEYS[1], 'lineage', 'run')
local refusal = unsealed(meta[1], meta[2])
if refusal then return refusal end

local job, tenant, project, class = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local keys = {runs = KEYS[2], tenants = KEYS[4], caps = KEYS[5], waiting = KEYS[6],
  high = KEYS[7], normal = KEYS[8]}
if redis.call('HEXISTS', keys.runs, job) == 1 then return {'ok', 0} end
local running, cap = admission_state(keys, tenant, ARGV[9])
redis.call('XLEN', KEYS[3])
redis.call('ZCARD', KEYS[9])

-- From here on everything is written.
redis.call('HSET', keys.runs, job, table.concat({tenant, class, '-', '-', ARGV[7], 0}, ' '))
local is_in = ARGV[10] == '1'
if is_in then
  let_in(keys, tenant, job, project, class)
  running = running + 1
  redis.call('ZADD', KEYS[9], ARGV[8], job)
else
  wait(keys, job, project, class, tonumber(ARGV[8]))
end
if admit(keys, tenant, running, cap) > 0 or is_in then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 'job', '-', 'what', 'queued')
end
return {'ok', 1}
