-- Which queued job runs next: the oldest one of the tenant that has the fewest running, so that no tenant's flood keeps
-- another's job waiting. A tenant at its limit waits.
--
-- KEYS: 1 tenants (set: those that ever had a job)  ARGV: 1 the most jobs of a tenant that run at once, 0: any number
-- Returns a job's id, or false where there is none to run.

local best, fewest, oldest = false, nil, nil
for _, tenant in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local jobs = 'known:tenant:' .. tenant .. ':jobs:'
  local first = redis.call('ZRANGE', jobs .. 'queued', 0, 0, 'WITHSCORES')
  if first[1] then
    local running = 0
    for _, status in ipairs({ 'validating', 'running', 'canceling' }) do
      running = running + redis.call('ZCARD', jobs .. status)
    end
    local created_at, limit = tonumber(first[2]), tonumber(ARGV[1])
    local may = limit == 0 or running < limit
    if may and (not best or running < fewest or (running == fewest and created_at < oldest)) then
      best, fewest, oldest = first[1], running, created_at
    end
  end
end
return best
