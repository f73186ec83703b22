--[[ admit: let a tenant's waiting jobs in, after its cap changed, or because time has passed.

KEYS   1 meta   2 runs   3 bell   4 tenants   5 caps   6 waiting:<tenant>   7 work:high
       8 work:normal
ARGV   1 lineage   2 the server it was verified on   3 tenant
       4 cap of a tenant without one of its own
       5 the tenant's own cap from now on; 'default' takes it away; '' leaves it as it is

Result {'ok', how many were let in, how many run, cap} | {'refused', reason}

Atomic: everything. A lower cap ends nothing that runs; nobody is let in until it is met.
]]
-- include: seal
-- include: admission
if #KEYS ~= 8 or #ARGV ~= 5 then
  return redis.error_reply('HEADRACE admit: wrong number of keys or arguments')
end
local meta = redis.call('HMGET', KEYS[1], 'lineage', 'run')
local refusal = unsealed(meta[1], meta[2])
if refusal then return refusal end

local tenant = ARGV[3]
local keys = {runs = KEYS[2], tenants = KEYS[4], caps = KEYS[5], waiting = KEYS[6],
  high = KEYS[7], normal = KEYS[8]}
local running, cap = admission_state(keys, tenant, ARGV[4])
redis.call('XLEN', KEYS[3])

-- From here on everything is written.
if ARGV[5] == 'default' then
  redis.call('HDEL', keys.caps, tenant)
  cap = tonumber(ARGV[4])
elseif ARGV[5] ~= '' then
  redis.call('HSET', keys.caps, tenant, ARGV[5])
  cap = tonumber(ARGV[5])
end
local admitted = admit(keys, tenant, running, cap)
if admitted > 0 then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 'job', '-', 'what', 'queued')
end
return {'ok', admitted, running + admitted, cap}
