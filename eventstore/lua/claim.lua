--[[ claim: take jobs of one partition that may run now, and fence whoever had them.

KEYS   1 meta   2 runs   3 work:high   4 work:normal
ARGV   1 lineage   2 the server it was verified on
       3 worker   4 how many (free slots)   5 lease in ms

Result {'ok', {job, tenant, project, class, entry id, attempt, deliveries}, ...}
       {'refused', reason}

Atomic: the entry changes hands and `runs` names the new owner in one step; from then on the
predecessor can neither append nor report. `high` goes before `normal`, abandoned work before new.
No takeover within one lease after the log was opened, but of what was handed back: idle times went
on counting while the server was down, and the living have had no chance to send a heartbeat.
]]
-- include: seal
local GROUP, HANDED_BACK_MS = 'generators', 1000000000000  -- 31 years: `release` says 1970
if #KEYS ~= 4 or #ARGV ~= 5 then
  return redis.error_reply('HEADRACE claim: wrong number of keys or arguments')
end
local meta = redis.call('HMGET', KEYS[1], 'lineage', 'run', 'opened')
local refusal = unsealed(meta[1], meta[2])
if refusal then return refusal end

-- A key of the wrong type or without its group is met before anything is written.
redis.call('HLEN', KEYS[2])
redis.call('XPENDING', KEYS[3], GROUP)
redis.call('XPENDING', KEYS[4], GROUP)

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
  result[#result + 1] = {fields.job, tenant, fields.project, class, at, attempt, deliveries}
  free = free - 1
end

local silent = now - tonumber(meta[3]) >= lease and lease or HANDED_BACK_MS
for _, work in ipairs({KEYS[3], KEYS[4]}) do
  if free > 0 then
    -- One call looks at ten entries per wanted one; the abandoned may stand behind the living.
    local cursor = '0-0'
    repeat
      local answer = redis.call('XAUTOCLAIM', work, GROUP, worker, silent, cursor, 'COUNT', free)
      cursor = answer[1]
      for _, entry in ipairs(answer[2]) do take(work, entry) end
    until cursor == '0-0' or free <= 0
  end
end
for _, work in ipairs({KEYS[3], KEYS[4]}) do
  if free > 0 then
    local answer = redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', free, 'STREAMS',
      work, '>')
    for _, entry in ipairs(answer and answer[1][2] or {}) do take(work, entry) end
  end
end
return result
