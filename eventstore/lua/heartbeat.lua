--[[ heartbeat: the owner of a job says that it lives; its lease begins anew.

KEYS   1 runs   2 the work stream of the job's class
ARGV   1 job   2 owner   3 attempt

Result 'held' when the lease was renewed, 'lost' when the job is not this owner's any more,
       'ended' when it is nobody's

Atomic: the check of the owner and the claim, so that a heartbeat that was under way while the job
changed hands cannot take it back.
]]
if #KEYS ~= 2 or #ARGV ~= 3 then
  return redis.error_reply('HEADRACE heartbeat: wrong number of keys or arguments')
end
local run = redis.call('HGET', KEYS[1], ARGV[1])
if not run then return 'ended' end
local entry, owner, attempt = string.match(run, '^%S+ %S+ (%S+) (%S+) (%d+) %d+$')
if owner ~= ARGV[2] or attempt ~= ARGV[3] then return 'lost' end
redis.call('XCLAIM', KEYS[2], 'generators', owner, 0, entry, 'JUSTID')
return 'held'
