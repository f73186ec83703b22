--[[ claim: take jobs of one partition that may run now, and fence whoever had them.

KEYS   1 meta   2 runs   3 work:high   4 work:normal   5 cancelling
       then the streams of jobs that the caller has heard of
ARGV   1 lineage   2 the server it was verified on
       3 worker   4 how many (free slots)   5 lease in ms
       6 how many entries of a stream at most, then those jobs, in the order of their streams

Result {'ok', {job, tenant, project, class, entry id, attempt, deliveries, entries}, ...}
       {'refused', reason}
`entries` are the first ones of a taken job's stream, if the caller has heard of that very job.

Atomic: the entry changes hands and `runs` names the new owner in one step; from then on the
predecessor can neither append nor report. `high` goes before `normal`, abandoned work before new.
Abandoned jobs that are being cancelled go before all and need no free slot, some at a time.
No takeover within one lease after the log was opened, but of what was handed back: idle times went
on counting while the server was down, and the living have had no chance to send a heartbeat.
]]
-- include: seal
local GROUP, HANDED_BACK_MS = 'generators', 1000000000000  -- 31 years: `release` says 1970
local MOST_CANCELLED = 16
if #KEYS < 5 or #ARGV ~= #KEYS + 1 then
  return redis.error_reply('HEADRACE claim: wrong number of keys or arguments')
end
local meta = redis.call('HMGET', KEYS[1], 'lineage', 'run', 'opened')
local refusal = unsealed(meta[1], meta[2])
if refusal then return refusal end

-- A key of the wrong type or without its group is met before anything is written.
redis.call('HLEN', KEYS[2])
redis.call('XPENDING', KEYS[3], GROUP)
redis.call('XPENDING', KEYS[4], GROUP)
local cancelling = redis.call('ZRANGE', KEYS[5], 0, -1)
local streams = {}
for i = 6, #KEYS do
  redis.call('XLEN', KEYS[i])
  streams[ARGV[i + 1]] = KEYS[i]
end

local worker, free, lease = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local result = {'ok'}

local function take(work, entry)
  local fields = {}
  for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
  local run = redis.call('HGET', KEYS[2], fields.job)
  local tenant, class, at, attempt, deliveries
  if run then
    tenant, class, at, attempt, deliveries =
      string.match(run, '^(%S+) (%S+) (%S+) %S+ (%d+) (%d+)$')
  end
  if at ~= entry[1] then
    -- The job has ended, or runs from another entry: nothing to do here.
    redis.call('XACK', work, GROUP, entry[1])
    redis.call('XDEL', work, entry[1])
    return
  end
  attempt, deliveries = tonumber(attempt) + 1, tonumber(deliveries) + 1
  redis.call('HSET', KEYS[2], fields.job,
    table.concat({tenant, class, at, worker, attempt, deliveries}, ' '))
  local stream = streams[fields.job]
  local entries = stream and redis.call('XRANGE', stream, '-', '+', 'COUNT', ARGV[6]) or {}
  result[#result + 1] =
    {fields.job, tenant, fields.project, class, at, attempt, deliveries, entries}
end

local silent = now - tonumber(meta[3]) >= lease and lease or HANDED_BACK_MS
for _, job in ipairs(cancelling) do
  local run = redis.call('HGET', KEYS[2], job)
  if not run then
    redis.call('ZREM', KEYS[5], job)  -- it has ended
  elseif #result <= MOST_CANCELLED then
    local class, at = string.match(run, '^%S+ (%S+) (%S+)')
    local work = class == 'high' and KEYS[3] or KEYS[4]
    local found = at ~= '-' and redis.call('XCLAIM', work, GROUP, worker, silent, at) or {}
    for _, entry in ipairs(found) do take(work, entry) end
  end
end

local most = free + #result  -- what was taken up to here needs no slot
for _, work in ipairs({KEYS[3], KEYS[4]}) do
  if #result < most then
    -- One call looks at ten entries per wanted one; the abandoned may stand behind the living.
    local cursor = '0-0'
    repeat
      local answer = redis.call('XAUTOCLAIM', work, GROUP, worker, silent, cursor,
        'COUNT', most - #result)
      cursor = answer[1]
      for _, entry in ipairs(answer[2]) do take(work, entry) end
    until cursor == '0-0' or #result >= most
  end
end
for _, work in ipairs({KEYS[3], KEYS[4]}) do
  if #result < most then
    local answer = redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', most - #result,
      'STREAMS', work, '>')
    for _, entry in ipairs(answer and answer[1][2] or {}) do take(work, entry) end
  end
end
return result
