--[[ retire: remove the consumers of dead workers that hold nothing.

KEYS   1 work:high   2 work:normal
ARGV   1 how long a consumer must have been silent, in ms

Result how many were removed.

Atomic: the look and the removal, for a consumer that is removed while it holds an entry takes the
entry with it, and its job would never be given to anybody again.
]]
if #KEYS ~= 2 or #ARGV ~= 1 then
  return redis.error_reply('HEADRACE retire: wrong number of keys or arguments')
end
local GROUP = 'generators'
local removed = 0
for _, work in ipairs(KEYS) do
  local there = redis.call('EXISTS', work) == 1
  for _, consumer in ipairs(there and redis.call('XINFO', 'CONSUMERS', work, GROUP) or {}) do
    local about = {}
    for i = 1, #consumer, 2 do about[consumer[i]] = consumer[i + 1] end
    if about.pending == 0 and about.idle >= tonumber(ARGV[1]) then
      redis.call('XGROUP', 'DELCONSUMER', work, GROUP, about.name)
      removed = removed + 1
    end
  end
end
return removed
