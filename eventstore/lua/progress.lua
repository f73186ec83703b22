--[[ progress: one line about a job, shown live, never folded.

KEYS   1 the job's stream   2 runs   3 bell
ARGV   1 job   2 owner   3 attempt   4 cap (lines per job)   5 time   6 kind   7 data (JSON)

Result {'ok', entry id} | {'capped'} | {'refused', 'Fenced', owner, attempt}

Atomic: everything. Fenced by ownership and not by version, so that a cancel request in between
does not silence the worker. The line goes behind the newest event, `<version>-<n>`; it never makes
a version of its own. The line after the last one that fits says that the rest is left out.
]]
if #KEYS ~= 3 or #ARGV ~= 7 then
  return redis.error_reply('HEADRACE progress: wrong number of keys or arguments')
end
local run = redis.call('HGET', KEYS[2], ARGV[1])
local owner, attempt
if run then owner, attempt = string.match(run, '^%S+ %S+ %S+ (%S+) (%d+) %d+$') end
if owner ~= ARGV[2] or attempt ~= ARGV[3] then
  return {'refused', 'Fenced', owner or '-', attempt or '0'}
end
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not newest then return {'refused', 'Fenced', owner, attempt} end
redis.call('XLEN', KEYS[3])
local version = tonumber(string.match(newest[1], '^(%d+)-'))
local lines, cap = redis.call('XLEN', KEYS[1]) - version, tonumber(ARGV[4])
if lines > cap then return {'capped'} end
local kind, data = ARGV[6], ARGV[7]
if lines == cap then kind, data = 'capped', '{"lines":' .. ARGV[4] .. '}' end
local id = redis.call('XADD', KEYS[1], version .. '-*', 'kind', kind, 'time', ARGV[5], 'data', data)
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 'job', ARGV[1], 'what', 'line')
return {'ok', id}
