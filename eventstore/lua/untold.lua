--[[ untold: what a running job has used that no event tells yet, noted for its tenant's day.

KEYS   1 day:<tenant>:<day>   2 runs   3 quotas
ARGV   1 job   2 attempt   3 tokens   4 billionths of a dollar   5 tenant

Result jobs, tokens, billionths of a dollar and ms of the day, the untold of all its jobs included;
       1 if that is all that was used (see count_from), otherwise 0; what was set for the tenant alone

Atomic: everything, so that of jobs that report at once each sees those before. An append that adds
to the day takes the note of its job away: what the job has used is counted then. An attempt that
was taken over from, or whose job has ended, notes nothing.
]]
if #KEYS ~= 3 or #ARGV ~= 5 then
  return redis.error_reply('HEADRACE untold: wrong number of keys or arguments')
end
redis.call('HLEN', KEYS[1])
local own = redis.call('HGET', KEYS[3], ARGV[5])
local run = redis.call('HGET', KEYS[2], ARGV[1])
if run and string.match(run, '(%d+) %d+$') == ARGV[2] then
  redis.call('HSET', KEYS[1], 'untold:' .. ARGV[1], ARGV[3] .. ' ' .. ARGV[4])
  redis.call('EXPIRE', KEYS[1], 172800)
end
local result = {}
for place, used in ipairs(redis.call('HMGET', KEYS[1], 'jobs', 'tokens', 'nano_usd', 'wall_ms')) do
  result[place] = tonumber(used or '0')
end
local day = redis.call('HGETALL', KEYS[1])
for i = 1, #day, 2 do
  if string.sub(day[i], 1, 7) == 'untold:' then
    local tokens, nano_usd = string.match(day[i + 1], '^(%d+) (%d+)$')
    result[2], result[3] = result[2] + tonumber(tokens), result[3] + tonumber(nano_usd)
  end
end
result[5], result[6] = redis.call('HEXISTS', KEYS[1], 'is_whole'), own
return result
