--[[ seal: whether the caller may write to this log. Shared by the scripts that include it.

The caller names the lineage that it verified, and the server that it verified it on: run id and
replication id. A server keeps its run id while it is a replica for a while and a primary again, and
so do connections to it; its replication id is another one then.
]]
-- Why it may not, as an answer; nothing when it may.
local function unsealed(lineage, server)
  if not lineage then return {'refused', 'LogMissing'} end
  if lineage ~= ARGV[1] then return {'refused', 'LogUnverified', lineage} end
  local now = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  if server ~= ARGV[2] or string.match(server, '%x+$') ~= string.sub(now, 1, 20) then
    return {'refused', 'RunChanged'}
  end
end
