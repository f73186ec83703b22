--[[ forget_commands: remove results of commands, each only if it is still the one that was read.

KEYS   the results
ARGV   what each of them held

Result how many were removed

Atomic: the looks and the removal. An id whose result expired meanwhile may have been used anew.
]]
if #KEYS < 1 or #KEYS ~= #ARGV then
  return redis.error_reply('HEADRACE forget_commands: wrong number of keys or arguments')
end
local removed = 0
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[i] then removed = removed + redis.call('DEL', KEYS[i]) end
end
return removed
