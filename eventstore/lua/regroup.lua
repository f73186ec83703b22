--[[ regroup: make the consumer group of a work stream anew, where somebody has destroyed it.

KEYS   1 meta   2 runs   3 work:high   4 work:normal
ARGV   1 lineage   2 the server it was verified on

Result {'ok', how many were made} | {'refused', reason}

Atomic: everything. Jobs are given out in the order of the stream: the group goes on behind the last
one that has an owner. Up to there each owner has its job back with a whole lease, and those without
one were handed back, which they are again.
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

-- The stream's entries up to the last that is owned: entry id and owner, `-` for nobody.
local function given_out(work)
  local found, last = {}, 0
  for number, entry in ipairs(redis.call('XRANGE', work, '-', '+')) do
    local fields = {}
    for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
    local run = redis.call('HGET', KEYS[2], fields.job) or ''
    local at, owner = string.match(run, '^%S+ %S+ (%S+) (%S+) %d+ %d+$')
    if at ~= entry[1] then owner = '-' end
    found[number] = {entry[1], owner}
    if owner ~= '-' then last = number end
  end
  return found, last
end

local made = 0
for _, work in ipairs({KEYS[3], KEYS[4]}) do
  if not has_group(work) then
    local entries, last = given_out(work)
    redis.call('XGROUP', 'CREATE', work, GROUP, last > 0 and entries[last][1] or '0', 'MKSTREAM')
    for number = 1, last do
      local entry, owner = entries[number][1], entries[number][2]
      if owner == '-' then
        redis.call('XCLAIM', work, GROUP, owner, 0, entry, 'TIME', 1, 'FORCE', 'JUSTID')
      else
        redis.call('XCLAIM', work, GROUP, owner, 0, entry, 'FORCE', 'JUSTID')
      end
    end
    made = made + 1
  end
end
return {'ok', made}
