--[[ append: the next events of one job, whole or not at all.

KEYS   1 meta   2 log   3 the job's stream   4 runs   5 bell   6 work:high   7 work:normal
       8 builds   9 cmd (any key of the partition when there is no command id)
ARGV   1 lineage   2 expected version   3 tenant   4 project   5 job   6 work class
       7 owner, 8 attempt: of the worker that appends; '' for a command from outside
       9 request hash, 10 life of the result in ms; '' when there is no command id
      11 proposed build number; '' unless a JobReady is among the events
      12 number of events, then for each: id, type, time, cause, trace, data

Result {'ok', version, epoch, seq}            of the last event
       {'repeated', job, version, position}   this command id was answered before, with this
       {'refused', reason, ...}               nothing was written

Atomic: everything. Redis does not roll back, so all checks stand before the first write, and the
one write that Redis itself could refuse (the log's entry id) is the first. Payloads pass through
as they are: cjson would turn [] into {} and lose large integers.
]]
local FIXED, PER_EVENT, GROUP = 12, 6, 'generators'
local count = tonumber(ARGV[12])
if #KEYS ~= 9 or not count or #ARGV ~= FIXED + count * PER_EVENT then
  return redis.error_reply('HEADRACE append: wrong number of keys or arguments')
end

local meta = redis.call('HMGET', KEYS[1], 'lineage', 'epoch', 'seq', 'opened')
local epoch, seq = tonumber(meta[2]), tonumber(meta[3])
if not meta[1] or not epoch or not seq then return {'refused', 'LogMissing'} end
if meta[1] ~= ARGV[1] then return {'refused', 'LogUnverified', meta[1]} end
if not meta[4] then return {'refused', 'LogUnverified', 'not opened'} end

local hash = ARGV[9]
if hash ~= '' then
  local known = redis.call('GET', KEYS[9])
  if known then
    local first_hash, job, version, position = string.match(known, '^(%S+) (%S+) (%d+) (%S+)$')
    if first_hash ~= hash then return {'refused', 'CommandIdReused', job} end
    return {'repeated', job, tonumber(version), position}
  end
end

local expected = tonumber(ARGV[2])
local newest = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
local version = newest and tonumber(string.match(newest[1], '^(%d+)-')) or 0
if version ~= expected then
  -- A client that lost the reply sends the same events again: they are there, so that is its answer.
  local twin = count > 0 and redis.call('XRANGE', KEYS[3],
    (expected + 1) .. '-0', (expected + 1) .. '-0')[1]
  if twin and twin[2][2] == ARGV[FIXED + 1] then
    local last = redis.call('XRANGE', KEYS[3], (expected + count) .. '-0', (expected + count) .. '-0')[1]
    local e, s = string.match(last[2][4], '^(%d+)-(%d+)$')
    return {'ok', expected + count, tonumber(e), tonumber(s)}
  end
  return {'refused', 'VersionConflict', version}
end

local job = ARGV[5]
local run = redis.call('HGET', KEYS[4], job)
local class, entry, owner, attempt
if run then class, entry, owner, attempt = string.match(run, '^%S+ (%S+) (%S+) (%S+) (%d+)$') end
if ARGV[7] ~= '' and (owner ~= ARGV[7] or attempt ~= ARGV[8]) then
  return {'refused', 'Fenced', owner or '-', attempt or '0'}
end

local field, proposed = ARGV[3] .. '/' .. ARGV[4], ARGV[11]
local queued, ready, ended = false, false, false
for i = 1, count do
  local kind = ARGV[FIXED + (i - 1) * PER_EVENT + 2]
  queued = queued or kind == 'JobQueued'
  ready = ready or kind == 'JobReady'
  ended = ended or kind == 'JobReady' or kind == 'JobFailed' or kind == 'JobCancelled'
end
if queued or ready then
  local last = redis.call('HGET', KEYS[8], field)
  if not last then return {'refused', 'NumberUnknown'} end
  if ready and tonumber(proposed) ~= tonumber(last) + 1 then
    return {'refused', 'NumberTaken', tonumber(last)}
  end
end

-- From here on everything is written.
for i = 1, count do
  local base = FIXED + (i - 1) * PER_EVENT
  local at = epoch .. '-' .. (seq + i)
  local number = expected + i
  redis.call('XADD', KEYS[2], at,
    'id', ARGV[base + 1], 'type', ARGV[base + 2], 'tenant', ARGV[3], 'project', ARGV[4],
    'job', job, 'version', number, 'time', ARGV[base + 3], 'cause', ARGV[base + 4],
    'trace', ARGV[base + 5], 'data', ARGV[base + 6])
  redis.call('XADD', KEYS[3], number .. '-0',
    'id', ARGV[base + 1], 'at', at, 'type', ARGV[base + 2], 'tenant', ARGV[3], 'project', ARGV[4],
    'job', job, 'version', number, 'time', ARGV[base + 3], 'cause', ARGV[base + 4],
    'trace', ARGV[base + 5], 'data', ARGV[base + 6])
end
if count > 0 then redis.call('HSET', KEYS[1], 'seq', seq + count) end
if ready then redis.call('HSET', KEYS[8], field, proposed) end
if queued then
  local work = ARGV[6] == 'high' and KEYS[6] or KEYS[7]
  local id = redis.call('XADD', work, '*', 'job', job, 'tenant', ARGV[3], 'project', ARGV[4])
  redis.call('HSET', KEYS[4], job, table.concat({ARGV[3], ARGV[6], id, '-', '0'}, ' '))
end
if ended and run then
  local work = class == 'high' and KEYS[6] or KEYS[7]
  redis.call('XACK', work, GROUP, entry)
  redis.call('XDEL', work, entry)
  redis.call('HDEL', KEYS[4], job)
end
if count > 0 then
  redis.call('PERSIST', KEYS[3])
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', 1000, '*', 'job', job, 'what', queued and 'queued' or 'event')
end
if hash ~= '' then
  local result = table.concat({hash, job, expected + count, epoch .. '-' .. (seq + count)}, ' ')
  redis.call('SET', KEYS[9], result, 'PX', ARGV[10])
end
return {'ok', expected + count, epoch, seq + count}
