--[[ reopen: the log was compared with its archive on this server process; append to it from now on.

KEYS   1 meta
ARGV   1 lineage   2 run id that meta had when it was compared   3 seq it had then
       4 the server's run id now   5 epoch from now on

Result 1 when it is open on this server, 0 when it changed meanwhile and must be compared again.

Atomic: everything. Of two processes that open at once, the second finds the work done.
]]
if #KEYS ~= 1 or #ARGV ~= 5 then
  return redis.error_reply('HEADRACE reopen: wrong number of keys or arguments')
end
local meta = redis.call('HMGET', KEYS[1], 'lineage', 'run', 'seq', 'epoch')
if meta[1] ~= ARGV[1] then return 0 end
if meta[2] == ARGV[4] and meta[4] == ARGV[5] then return 1 end
if meta[2] ~= ARGV[2] or meta[3] ~= ARGV[3] then return 0 end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'run', ARGV[4], 'epoch', ARGV[5],
  'opened', time[1] * 1000 + math.floor(time[2] / 1000))
return 1
