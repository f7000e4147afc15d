-- Which queued job runs next: the oldest one of the tenant that has the fewest running; among those, of the one whose turn
-- was longest ago. So no tenant's flood keeps another's job waiting. A tenant at its limit waits.
--
-- KEYS: 1 tenants (set: those that ever had a job), 2 turns (hash: when a job of a tenant was last claimed)
-- ARGV: 1 the most jobs of a tenant that run at once, 0: any number
-- Returns a job's id, or false where there is none to run.

local limit = tonumber(ARGV[1])
local best = nil

local function before(a, b)
  if a.running ~= b.running then return a.running < b.running end
  if a.turn ~= b.turn then return a.turn < b.turn end
  return a.created_at < b.created_at
end

for _, tenant in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local jobs = 'known:tenant:' .. tenant .. ':jobs:'
  local oldest = redis.call('ZRANGE', jobs .. 'queued', 0, 0, 'WITHSCORES')
  if oldest[1] then
    local running = 0
    for _, status in ipairs({ 'validating', 'running', 'canceling' }) do
      running = running + redis.call('ZCARD', jobs .. status)
    end
    local turn = tonumber(redis.call('HGET', KEYS[2], tenant) or '0')
    local candidate = { id = oldest[1], running = running, turn = turn, created_at = tonumber(oldest[2]) }
    if (limit == 0 or running < limit) and (not best or before(candidate, best)) then best = candidate end
  end
end
return best and best.id or false
