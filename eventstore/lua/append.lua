--[[ append: the next events of one job, whole or not at all.

KEYS   1 meta   2 log   3 the job's stream   4 runs   5 bell
       6 cmd (any key of the partition when there is no command id)
       and, for an append that queues or ends the job:
       7 builds   8 tenants   9 caps   10 waiting:<tenant>   11 work:high   12 work:normal
       then, for one that asks a worker to cancel the job: cancelling
       and last, where there is something to count: day:<tenant>:<day>
ARGV   1 lineage   2 the server it was verified on   3 expected version
       4 tenant   5 project   6 job   7 work class
       8 owner, 9 attempt: of the worker that appends; '' for a command from outside
       10 what the events mean for the job, in words: queued, ready, ended, cancelling, further
          (than any attempt before); only the caller knows what each version of an event means
       11 request hash, 12 life of the result in ms; '' when there is no command id
       13 proposed build number; '' unless a JobReady is among the events
       14 cap of a tenant without one of its own   15 how many jobs of a tenant may wait
       16 what the events add to the tenant's day: jobs, tokens, billionths of a dollar, ms; or ''
       17 how much of each the day may have before a job is queued, `-`: any; '' without a limit
       18 number of events, then for each: id, type, time, cause, trace, data

Result {'ok', version, epoch, seq}            of the last event
       {'repeated', job, version, position}   this command id was answered before, with this
       {'refused', reason, ...}               nothing was written

Atomic: everything. Redis does not roll back, so all checks stand before the first write, and the
one write that Redis itself could refuse (the log's entry id) is the first. A key of the wrong type
is met by a read before that. Payloads pass through as they are: cjson would turn [] into {} and
lose large integers.
]]
-- include: seal
-- include: admission
local FIXED, PER_EVENT, GROUP = 18, 6, 'generators'
local COUNTED, DAY_LIVES_S = {'jobs', 'tokens', 'nano_usd', 'wall_ms'}, 172800
local count = tonumber(ARGV[18])
local means = {}
for word in string.gmatch(ARGV[10] or '', '%a+') do means[word] = true end
local day = ARGV[16] ~= '' and KEYS[#KEYS]
local named = #KEYS - (day and 1 or 0) - (means.cancelling and 1 or 0)
local bookkeeping = named == 12
if not (bookkeeping or named == 6) or not count or #ARGV ~= FIXED + count * PER_EVENT then
  return redis.error_reply('HEADRACE append: wrong number of keys or arguments')
end

local meta = redis.call('HMGET', KEYS[1], 'lineage', 'run', 'epoch', 'seq')
local epoch, seq = tonumber(meta[3]), tonumber(meta[4])
local refusal = unsealed(epoch and seq and meta[1], meta[2])
if refusal then return refusal end

local hash = ARGV[11]
if hash ~= '' then
  local known = redis.call('GET', KEYS[6])
  if known then
    local first_hash, job, version, position = string.match(known, '^(%S+) (%S+) (%d+) (%S+)$')
    if first_hash ~= hash then return {'refused', 'CommandIdReused', job} end
    return {'repeated', job, tonumber(version), position}
  end
end

local job = ARGV[6]
local run = redis.call('HGET', KEYS[4], job)
local class, entry, owner, attempt
if run then class, entry, owner, attempt = string.match(run, '^%S+ (%S+) (%S+) (%S+) (%d+) %d+$') end
local fenced = ARGV[8] ~= '' and (owner ~= ARGV[8] or attempt ~= ARGV[9])

local expected = tonumber(ARGV[3])
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
end
-- Behind the twin: a job whose last event is there already has no owner any more.
if fenced then return {'refused', 'Fenced', owner or '-', attempt or '0'} end
if version ~= expected then return {'refused', 'VersionConflict', version} end

if day then
  local used, place = redis.call('HMGET', day, unpack(COUNTED)), 0
  for limit in string.gmatch(ARGV[17], '%S+') do
    place = place + 1
    if limit ~= '-' and tonumber(used[place] or '0') >= tonumber(limit) then
      return {'refused', 'QuotaSpent', COUNTED[place], used[place] or '0'}
    end
  end
end

local tenant, project = ARGV[4], ARGV[5]

local queued, ready, ended = means.queued, means.ready, means.ended
local field, proposed = tenant .. '/' .. project, ARGV[13]
local keys, running, cap
if queued or ended then
  if not bookkeeping then
    return redis.error_reply('HEADRACE append: wrong number of keys or arguments')
  end
  keys = {runs = KEYS[4], tenants = KEYS[8], caps = KEYS[9], waiting = KEYS[10],
    high = KEYS[11], normal = KEYS[12]}
  running, cap = admission_state(keys, tenant, ARGV[14])
  local waiting = redis.call('ZCARD', keys.waiting)
  if queued and running >= cap and waiting >= tonumber(ARGV[15]) then
    return {'refused', 'TooManyWaiting', ARGV[15]}
  end
  local last = redis.call('HGET', KEYS[7], field)
  -- Asked for when a job is queued, so that READY does not have to wait for the archive.
  if (queued or ready) and not last then return {'refused', 'NumberUnknown'} end
  if ready and tonumber(proposed) ~= tonumber(last) + 1 then
    return {'refused', 'NumberTaken', tonumber(last)}
  end
end
redis.call('XLEN', KEYS[5])
if means.cancelling then redis.call('ZCARD', KEYS[named + 1]) end

-- From here on everything is written.
for i = 1, count do
  local base = FIXED + (i - 1) * PER_EVENT
  local at = epoch .. '-' .. (seq + i)
  local number = expected + i
  redis.call('XADD', KEYS[2], at,
    'id', ARGV[base + 1], 'type', ARGV[base + 2], 'tenant', tenant, 'project', project,
    'job', job, 'version', number, 'time', ARGV[base + 3], 'cause', ARGV[base + 4],
    'trace', ARGV[base + 5], 'data', ARGV[base + 6])
  redis.call('XADD', KEYS[3], number .. '-0',
    'id', ARGV[base + 1], 'at', at, 'type', ARGV[base + 2], 'tenant', tenant, 'project', project,
    'job', job, 'version', number, 'time', ARGV[base + 3], 'cause', ARGV[base + 4],
    'trace', ARGV[base + 5], 'data', ARGV[base + 6])
end
if count > 0 then redis.call('HSET', KEYS[1], 'seq', seq + count) end
if ready then redis.call('HSET', KEYS[7], field, proposed) end
local admitted = 0
if queued then
  class = ARGV[7]
  redis.call('HSET', KEYS[4], job, table.concat({tenant, class, '-', '-', 0, 0}, ' '))
  wait(keys, job, project, class, seq)
  run, entry = true, '-'
end
if ended and run then
  if entry == '-' then
    redis.call('ZREM', keys.waiting, table.concat({job, project, class}, ' '))
  else
    redis.call('XACK', keys[class], GROUP, entry)
    redis.call('XDEL', keys[class], entry)
    running = running - 1
  end
  redis.call('HDEL', KEYS[4], job)
end
if queued or ended then admitted = admit(keys, tenant, running, cap) end
-- Whoever claims takes it out of there when it has ended.
if run and means.cancelling then redis.call('ZADD', KEYS[named + 1], 'NX', seq, job) end
if run and means.further and not ended then
  -- It got further: what killed its workers before does not count against it any more.
  redis.call('HSET', KEYS[4], job, (string.gsub(redis.call('HGET', KEYS[4], job), '%d+$', '0')))
end
if count > 0 then
  redis.call('PERSIST', KEYS[3])
  local what = admitted > 0 and 'queued' or ARGV[8] == '' and 'request' or 'event'
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', 1000, '*', 'job', job, 'what', what)
end
if day then
  local place = 0
  for amount in string.gmatch(ARGV[16], '%d+') do
    place = place + 1
    if amount ~= '0' then redis.call('HINCRBY', day, COUNTED[place], amount) end
  end
  redis.call('HDEL', day, 'untold:' .. job)
  redis.call('EXPIRE', day, DAY_LIVES_S)
end
if hash ~= '' then
  local result = table.concat({hash, job, expected + count, epoch .. '-' .. (seq + count)}, ' ')
  redis.call('SET', KEYS[6], result, 'PX', ARGV[12])
end
return {'ok', expected + count, epoch, seq + count}
