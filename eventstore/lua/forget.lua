--[[ forget: in place of the streams of ended jobs, their newest events as the archive has them now.

KEYS   1 meta   2 runs   3… the streams
ARGV   1 lineage   2 the server it was verified on   3 time to live of what is put there, in ms
       then for each of KEYS 3…: job, version of its newest archived event, and the eleven fields
       and values of that event's entry

Result {'ok', streams that could not be forgotten} | {'refused', reason}

Atomic: everything. A stream stays that has news which is not archived, or whose job lives. One that
is not there is left so. The newest event is put back for a while rather than nothing, so that an
answer which somebody had from the archive before the erasure is not put there (`seed.lua` trusts
one for a minute), and a new event follows on its version.
]]
-- include: seal
local FIXED, PER_JOB = 3, 24
if #KEYS < 3 or #ARGV ~= FIXED + (#KEYS - 2) * PER_JOB then
  return redis.error_reply('HEADRACE forget: wrong number of keys or arguments')
end
local meta = redis.call('HMGET', KEYS[1], 'lineage', 'run')
local refusal = unsealed(meta[1], meta[2])
if refusal then return refusal end
-- A key of the wrong type is met before anything is written.
redis.call('HLEN', KEYS[2])
for i = 3, #KEYS do redis.call('XLEN', KEYS[i]) end
local left = 0
for i = 3, #KEYS do
  local base = FIXED + (i - 3) * PER_JOB
  local job, archived = ARGV[base + 1], tonumber(ARGV[base + 2])
  local newest = redis.call('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)[1]
  local version = newest and tonumber(string.match(newest[1], '^(%d+)-'))
  if version then
    if version > archived or redis.call('HEXISTS', KEYS[2], job) == 1 then
      left = left + 1
    else
      redis.call('DEL', KEYS[i])
      redis.call('XADD', KEYS[i], archived .. '-0', unpack(ARGV, base + 3, base + PER_JOB))
      redis.call('PEXPIRE', KEYS[i], ARGV[3])
    end
  end
end
return {'ok', left}
