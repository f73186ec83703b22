--[[ count_from: a tenant's counters of a day are no lower than what is known of it otherwise.

KEYS   1 day:<tenant>:<day>
ARGV   1 jobs   2 tokens   3 billionths of a dollar   4 wall time in ms

Result the four as they are then

Atomic: everything. The greater of both counts, not their sum: what the caller knows from the
archive may have been counted here too. Marked, so that it is done once a day.
]]
if #KEYS ~= 1 or #ARGV ~= 4 then
  return redis.error_reply('HEADRACE count_from: wrong number of keys or arguments')
end
local COUNTED = {'jobs', 'tokens', 'nano_usd', 'wall_ms'}
local used = redis.call('HMGET', KEYS[1], unpack(COUNTED))
local result = {}
for place, name in ipairs(COUNTED) do
  local now, known = used[place] or '0', ARGV[place]
  if tonumber(known) > tonumber(now) then
    redis.call('HSET', KEYS[1], name, known)
    now = known
  end
  result[place] = tonumber(now)
end
redis.call('HSET', KEYS[1], 'is_whole', 1)
redis.call('EXPIRE', KEYS[1], 172800)
return result
