--[[ regroup: make the consumer group of a work stream anew, where somebody has destroyed it.

KEYS   1 meta   2 runs   3 work:high   4 work:normal
ARGV   1 lineage   2 the server it was verified on

Result {'ok', how many were made} | {'refused', reason}

Atomic: everything. Jobs are given out in the order of the stream, so those that have an owner are
its beginning: the group goes on behind them, and each owner has its job back with a whole lease.
From the first one without an owner on all are given out, so that none is passed over.
]]
-- include: seal
local GROUP = 'generators'
if #KEYS ~= 4 or #ARGV ~= 2 then
  return redis.error_reply('HEADRACE regroup: wrong number of keys or arguments')
end
local meta = redis.call('HMGET', KEYS[1], 'lineage', 'run')
local refusal = unsealed(meta[1], meta[2])
if refusal then return refusal end
-- A key of the wrong type is met before anything is written.
redis.call('HLEN', KEYS[2])
redis.call('XLEN', KEYS[3])
redis.call('XLEN', KEYS[4])

local function has_group(work)
  local there = redis.call('EXISTS', work) == 1
  for _, group in ipairs(there and redis.call('XINFO', 'GROUPS', work) or {}) do
    if group[2] == GROUP then return true end
  end
end

-- The stream's first entries that are owned: entry id and owner, each.
local function owned(work)
  local found = {}
  for _, entry in ipairs(redis.call('XRANGE', work, '-', '+')) do
    local fields = {}
    for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
    local run = redis.call('HGET', KEYS[2], fields.job) or ''
    local at, owner = string.match(run, '^%S+ %S+ (%S+) (%S+) %d+ %d+$')
    if at ~= entry[1] or owner == '-' then break end
    found[#found + 1] = {entry[1], owner}
  end
  return found
end

local made = 0
for _, work in ipairs({KEYS[3], KEYS[4]}) do
  if not has_group(work) then
    local held = owned(work)
    redis.call('XGROUP', 'CREATE', work, GROUP, #held > 0 and held[#held][1] or '0', 'MKSTREAM')
    for _, one in ipairs(held) do
      redis.call('XCLAIM', work, GROUP, one[2], 0, one[1], 'FORCE', 'JUSTID')
    end
    made = made + 1
  end
end
return {'ok', made}
