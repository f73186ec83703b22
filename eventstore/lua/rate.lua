--[[ rate: a turn at something that may happen only so often, whoever asks.

KEYS   1 the rate
ARGV   1 ms between two turns   2 the longest wait in ms

Result {'ok', ms to wait before the turn that is now the caller's}
       {'refused', ms}   it would be longer than that; no turn was taken

Atomic: everything. The key holds the time of the next free turn by the server's clock, and is gone
when that is over.
]]
if #KEYS ~= 1 or #ARGV ~= 2 then
  return redis.error_reply('HEADRACE rate: wrong number of keys or arguments')
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local turn = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local wait = math.ceil(turn - now)
if wait > tonumber(ARGV[2]) then return {'refused', wait} end
local after = turn + tonumber(ARGV[1])
redis.call('SET', KEYS[1], string.format('%.3f', after), 'PX', math.max(1, math.ceil(after - now)))
return {'ok', wait}
