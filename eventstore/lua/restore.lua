--[[ restore: events of an export, written as they are. Nothing is queued, nothing is claimed.

KEYS   1 meta   2 log   3 bell   4… the streams of the jobs that these events are of
ARGV   1 lineage   2 the server it was verified on   3 seq of the log's last event
       then for each event: number of its job's key, counted from 1,
       id, type, tenant, project, job, version, time, cause, trace, data

Result {'ok', seq} of the last event
       {'refused', 'SeqConflict', actual}   somebody else has written to this log
       {'refused', 'JobThere', job}         a job's stream does not end before its first event here
       {'refused', reason, ...}             nothing was written

Atomic: everything, all checks before the first write. A batch whose answer was lost may be sent
again: the script knows it by its last event.
]]
-- include: seal
local FIXED, PER_EVENT = 3, 11
local count = (#ARGV - FIXED) / PER_EVENT
if #KEYS < 4 or count < 1 or count ~= math.floor(count) then
  return redis.error_reply('HEADRACE restore: wrong number of keys or arguments')
end
local meta = redis.call('HMGET', KEYS[1], 'lineage', 'run', 'epoch', 'seq')
local refusal = unsealed(meta[1], meta[2])
if refusal then return refusal end
local epoch, seq, expected = meta[3], tonumber(meta[4]), tonumber(ARGV[3])
if seq ~= expected then
  local at = epoch .. '-' .. (expected + count)
  local twin = seq == expected + count and redis.call('XRANGE', KEYS[2], at, at)[1]
  if twin and twin[2][2] == ARGV[FIXED + (count - 1) * PER_EVENT + 2] then return {'ok', seq} end
  return {'refused', 'SeqConflict', seq}
end

local versions = {}
for i = 1, count do
  local base = FIXED + (i - 1) * PER_EVENT
  local key = KEYS[3 + tonumber(ARGV[base + 1])]
  if not versions[key] then
    local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    versions[key] = newest and tonumber(string.match(newest[1], '^(%d+)-')) or 0
  end
  if tonumber(ARGV[base + 7]) ~= versions[key] + 1 then
    return {'refused', 'JobThere', ARGV[base + 6]}
  end
  versions[key] = versions[key] + 1
end
redis.call('XLEN', KEYS[3])

-- From here on everything is written.
for i = 1, count do
  local base = FIXED + (i - 1) * PER_EVENT
  local at, version = epoch .. '-' .. (seq + i), ARGV[base + 7]
  local id, kind, tenant, project, job = unpack(ARGV, base + 2, base + 6)
  local time, cause, trace, data = unpack(ARGV, base + 8, base + 11)
  redis.call('XADD', KEYS[2], at, 'id', id, 'type', kind, 'tenant', tenant, 'project', project,
    'job', job, 'version', version, 'time', time, 'cause', cause, 'trace', trace, 'data', data)
  redis.call('XADD', KEYS[3 + tonumber(ARGV[base + 1])], version .. '-0', 'id', id, 'at', at,
    'type', kind, 'tenant', tenant, 'project', project, 'job', job, 'version', version,
    'time', time, 'cause', cause, 'trace', trace, 'data', data)
end
redis.call('HSET', KEYS[1], 'seq', seq + count)
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 'job', '-', 'what', 'event')
return {'ok', seq + count}
