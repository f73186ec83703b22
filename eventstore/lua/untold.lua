--[[ untold: what a running job has used that no event tells yet, noted for its tenant's day.

KEYS   1 day:<tenant>:<day>   2 runs
ARGV   1 job   2 attempt   3 tokens   4 billionths of a dollar

Result jobs, tokens, billionths of a dollar and ms of the day, the untold of all its jobs included

Atomic: everything, so that of jobs that report at once each sees those before. An append that adds
to the day takes the note of its job away: what the job has used is counted then. An attempt that
was taken over from, or whose job has ended, notes nothing.
]]
if #KEYS ~= 2 or #ARGV ~= 4 then
  return redis.error_reply('HEADRACE untold: wrong number of keys or arguments')
end
redis.call('HLEN', KEYS[1])
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
return result
