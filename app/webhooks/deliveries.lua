-- The life of a delivery, from when states.lua has made it with the end of its job: each change is one call.
--
--   pending -> delivered | failed -> pending (redeliver)
--
-- KEYS: 1 due deliveries (zset: id -> when, ms; while one is being sent, when whoever sends it is given up)
-- ARGV: 1 operation, then its own. Time is the server's.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local MAX_ATTEMPTS = 100 -- kept in the log of one delivery
local operation, id = ARGV[1], ARGV[2]

local function key(of)
  return 'known:webhooks:' .. of
end

if operation == 'claim' then -- lease_ms; returns {id, fence}, or {} where nothing is due
  while true do
    local due = redis.call('ZRANGEBYSCORE', KEYS[1], 0, now, 'LIMIT', 0, 1)[1]
    if not due then return {} end
    if redis.call('EXISTS', key(due)) == 1 then
      redis.call('ZADD', KEYS[1], now + ARGV[2], due)
      redis.call('HSET', key(due), 'leased_until', now + ARGV[2])
      return { due, redis.call('HINCRBY', key(due), 'fence', 1) }
    end
    redis.call('ZREM', KEYS[1], due) -- it has expired
  end
end

if redis.call('EXISTS', key(id)) == 0 then return { 'missing' } end

if operation == 'attempted' then -- id, fence, attempt JSON, status, after_ms: when to try again where it is pending
  if redis.call('HGET', key(id), 'fence') ~= ARGV[3] then return { 'lost' } end
  local attempts = key(id) .. ':attempts'
  redis.call('RPUSH', attempts, ARGV[4])
  redis.call('LTRIM', attempts, -MAX_ATTEMPTS, -1)
  redis.call('PEXPIRE', attempts, redis.call('PTTL', key(id)))
  redis.call('HINCRBY', key(id), 'tries', 1)
  redis.call('HSET', key(id), 'status', ARGV[5])
  redis.call('HINCRBY', 'known:counters', 'webhook ' .. ARGV[5], 1) -- for the metrics
  redis.call('HDEL', key(id), 'leased_until', 'next_attempt_at')
  if ARGV[5] == 'pending' then
    redis.call('HSET', key(id), 'next_attempt_at', now + ARGV[6])
    redis.call('ZADD', KEYS[1], now + ARGV[6], id)
  else
    redis.call('ZREM', KEYS[1], id)
  end
  return { 'ok' }
end

if operation == 'redeliver' then -- id; one that is being sent right now is left alone
  if tonumber(redis.call('HGET', key(id), 'leased_until') or '0') > now then return { 'ok' } end
  redis.call('HSET', key(id), 'status', 'pending', 'tries', 0, 'next_attempt_at', now)
  redis.call('ZADD', KEYS[1], now, id)
  return { 'ok' }
end

return redis.error_reply('unknown operation ' .. operation)
