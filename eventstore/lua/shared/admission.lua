--[[ admission: which of a tenant's jobs may run. Shared by the scripts that include it.

A queued job waits first, and is let in at once while its tenant has fewer than its cap running:
one way in for all, so the counts can only be wrong in one place. `running` counts the jobs that
have a work entry, claimed or not. Of those that wait, `high` goes before `normal`, then the older.
]]
local MOST_AT_ONCE, NORMAL_AFTER_HIGH = 1000, 1125899906842624  -- 2^50: more than any log's seq

-- How many jobs of the tenant run, and how many may. Reads every key that `wait` and `admit` write,
-- so that one of the wrong type is met before anything is written.
local function admission_state(keys, tenant, default_cap)
  redis.call('HLEN', keys.runs)
  redis.call('ZCARD', keys.waiting)
  redis.call('XLEN', keys.high)
  redis.call('XLEN', keys.normal)
  local running = tonumber(redis.call('HGET', keys.tenants, tenant) or '0')
  return running, tonumber(redis.call('HGET', keys.caps, tenant) or default_cap)
end

local function wait(keys, job, project, class, seq)
  local score = seq + (class == 'high' and 0 or NORMAL_AFTER_HIGH)
  redis.call('ZADD', keys.waiting, score, table.concat({job, project, class}, ' '))
end

-- Give a job that is among `runs` its work entry; whoever calls counts it as running.
local function let_in(keys, tenant, job, project, class)
  local attempt, deliveries = string.match(redis.call('HGET', keys.runs, job), '(%d+) (%d+)$')
  local entry = redis.call('XADD', keys[class], '*', 'job', job, 'tenant', tenant,
    'project', project)
  redis.call('HSET', keys.runs, job,
    table.concat({tenant, class, entry, '-', attempt, deliveries}, ' '))
end

-- Let in whom the cap allows, and write down how many run; how many were let in.
local function admit(keys, tenant, running, cap)
  local admitted = 0
  while running < cap and admitted < MOST_AT_ONCE do
    local member = redis.call('ZPOPMIN', keys.waiting)[1]
    if not member then break end
    local job, project, class = string.match(member, '^(%S+) (%S+) (%S+)$')
    if redis.call('HEXISTS', keys.runs, job) == 1 then
      let_in(keys, tenant, job, project, class)
      running, admitted = running + 1, admitted + 1
    end
  end
  if running <= 0 and redis.call('EXISTS', keys.waiting) == 0 then
    redis.call('HDEL', keys.tenants, tenant)
  elseif redis.call('HGET', keys.tenants, tenant) ~= tostring(running) then
    redis.call('HSET', keys.tenants, tenant, running)
  end
  return admitted
end
