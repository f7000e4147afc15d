-- The life of a job: every change of its record is one call of this script, so it happens whole or not at all.
--
--   queued -> validating -> running -> succeeded | failed      cancel: queued | paused -> canceled
--      ^___________|___________| (release)                             validating | running -> canceling -> canceled
--                                                              pause:  queued -> paused -> queued (resume)
--                                                                      validating | running: the field pause_requested,
--                                                                      and paused when they are let go, or their lease ends
--
-- A job that succeeded may be published again: the field republish is there from the request to the end of it, and the
-- job is claimed and held meanwhile as one that runs is. Its status stays.
--
-- KEYS: 1 record (hash), 2 events (stream), 3 open jobs (zset: id -> when to look at it again, ms)
-- Jobs that have ended are in the zset known:jobs:ended by the time of it; 0 is one whose deletion has begun.
-- claimed_at is there while an attempt is charged for; spent_ms is the sum of those that have ended.
-- Each tenant's jobs are in zsets by age, one of all and one for each status; their names come from the record (one
-- server, no cluster).
-- The hash known:counters is for the metrics (app/metrics).
-- ARGV: 1 operation, 2 job id, then the operation's own. Time is the server's.
-- Returns {"ok", ...} or {reason}: missing, exists, full (the tenant has too many waiting), terminal, held, lost (the
-- caller's lease is gone), exhausted, limited (the tenant has as many running as may), paused, canceling.

local operation, id = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local status = redis.call('HGET', KEYS[1], 'status')
local MAX_EVENTS = 10000
local EVENT_SCHEMA = 1 -- app/jobs/migrations.py
local TERMINAL = { succeeded = true, failed = true, canceled = true }
local HELD = { validating = true, running = true, canceling = true }
local ENDED = 'known:jobs:ended'
local republish = redis.call('HEXISTS', KEYS[1], 'republish') == 1

local function jobs_of_tenant(in_status)
  local all = 'known:tenant:' .. redis.call('HGET', KEYS[1], 'tenant') .. ':jobs'
  return in_status and all .. ':' .. in_status or all
end

local function add_event(json)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', MAX_EVENTS, '*', 'schema', EVENT_SCHEMA, 'data', json)
  redis.call('HINCRBY', KEYS[1], 'version', 1)
  redis.call('PUBLISH', 'known:changes', id) -- whoever watches reads the stream; a message lost costs seconds
end

local function count(what)
  redis.call('HINCRBY', 'known:counters', what, 1)
end

local function lease_until()
  return tonumber(redis.call('HGET', KEYS[1], 'lease_until') or '0')
end

local function charge() -- for the attempt that ends: until now, or until its lease ran out
  local since = redis.call('HGET', KEYS[1], 'claimed_at')
  if since then
    redis.call('HINCRBY', KEYS[1], 'spent_ms', math.max(0, math.min(now, lease_until()) - since))
    redis.call('HDEL', KEYS[1], 'claimed_at')
  end
end

local function let_go()
  charge()
  redis.call('HDEL', KEYS[1], 'owner', 'lease_until', 'phase', 'pause_requested')
end

local function tell_webhook() -- the delivery is written with the end of the job: neither is there without the other
  local webhook = redis.call('HGET', KEYS[1], 'webhook')
  if not webhook or not cjson.decode(webhook).statuses[status] then return end
  local delivery, tenant = 'msg_' .. string.sub(id, 5), redis.call('HGET', KEYS[1], 'tenant')
  local outcome = redis.call('HGET', KEYS[1], status == 'succeeded' and 'result' or 'error') or 'null'
  redis.call('HSET', 'known:webhooks:' .. delivery, 'id', delivery, 'job', id, 'tenant', tenant, 'job_status', status,
    'outcome', outcome, 'webhook', webhook, 'status', 'pending', 'tries', 0, 'created_at', now, 'next_attempt_at', now)
  redis.call('EXPIRE', 'known:webhooks:' .. delivery, 30 * 24 * 3600)
  redis.call('ZADD', 'known:tenant:' .. tenant .. ':deliveries', now, delivery)
  redis.call('ZADD', 'known:webhooks:due', now, delivery) -- app/webhooks/deliveries.lua goes on from here
end

local function wait_for(what) -- "" for nothing
  if (redis.call('HGET', KEYS[1], 'waiting_for') or '') == what then return end
  if what == '' then redis.call('HDEL', KEYS[1], 'waiting_for') else redis.call('HSET', KEYS[1], 'waiting_for', what) end
  add_event(cjson.encode({ type = 'waiting', waiting_for = what }))
end

local function enter(new)
  if not HELD[new] then let_go() end
  if new ~= 'queued' then redis.call('HDEL', KEYS[1], 'waiting_for') end
  if status then redis.call('ZREM', jobs_of_tenant(status), id) end
  redis.call('ZADD', jobs_of_tenant(new), redis.call('HGET', KEYS[1], 'created_at'), id)
  status = new
  redis.call('HSET', KEYS[1], 'status', new)
  if TERMINAL[new] then
    redis.call('HSET', KEYS[1], 'finished_at', now)
    redis.call('HDEL', KEYS[1], 'secret')
    redis.call('ZADD', ENDED, now, id)
    redis.call('ZREM', KEYS[3], id)
    count('ended ' .. new)
    if new == 'failed' then
      count('failed ' .. (cjson.decode(redis.call('HGET', KEYS[1], 'error')).code or 'unknown'))
    end
    tell_webhook()
  end
  add_event('{"type":"status","status":"' .. new .. '"}')
end

local function look_again_at(when)
  redis.call('ZADD', KEYS[3], when, id)
end

local function queue_again(grace_ms)
  redis.call('HDEL', KEYS[1], 'progress')
  enter('queued')
  look_again_at(now + grace_ms)
end

local function pause()
  redis.call('ZREM', KEYS[3], id)
  redis.call('HDEL', KEYS[1], 'progress')
  enter('paused')
end

local function pause_requested()
  return redis.call('HEXISTS', KEYS[1], 'pause_requested') == 1
end

local function end_republish()
  redis.call('HDEL', KEYS[1], 'republish', 'republish_attempts', 'secret', 'owner', 'lease_until', 'phase', 'progress')
  redis.call('ZREM', KEYS[3], id)
  add_event('{"type":"republish","status":"ended"}')
end

if operation == 'create' then -- grace_ms, max_queued, "tenant", tenant, then field, value, ...
  if status then return { 'exists' } end
  local jobs = 'known:tenant:' .. ARGV[6] .. ':jobs:'
  local waiting = redis.call('ZCARD', jobs .. 'queued') + redis.call('ZCARD', jobs .. 'paused')
  if tonumber(ARGV[4]) > 0 and waiting >= tonumber(ARGV[4]) then return { 'full' } end
  redis.call('HSET', KEYS[1], 'id', id, 'created_at', now, 'attempts', 0, 'fence', 0, unpack(ARGV, 5))
  redis.call('SADD', 'known:tenants', ARGV[6])
  redis.call('ZADD', jobs_of_tenant(), now, id)
  enter('queued')
  look_again_at(now + tonumber(ARGV[3]))
  return { 'ok' }
end

if not status then return { 'missing' } end

if operation == 'claim' then -- owner, lease_ms, max_attempts, error JSON when they are used up, max_running
  if TERMINAL[status] and not republish then return { 'terminal' } end
  if lease_until() > now then return { 'held' } end
  if republish then
    if redis.call('HINCRBY', KEYS[1], 'republish_attempts', 1) > tonumber(ARGV[5]) then
      local result = cjson.decode(redis.call('HGET', KEYS[1], 'result'))
      result.publish_error = cjson.decode(ARGV[6])
      redis.call('HSET', KEYS[1], 'result', cjson.encode(result))
      end_republish()
      return { 'exhausted' }
    end
    local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
    redis.call('HSET', KEYS[1], 'owner', ARGV[3], 'lease_until', now + tonumber(ARGV[4]))
    look_again_at(now + tonumber(ARGV[4]))
    return { 'ok', fence }
  end
  if status == 'canceling' then
    enter('canceled')
    return { 'terminal' }
  end
  if status == 'paused' then return { 'paused' } end
  if pause_requested() then -- who was to stop died first
    pause()
    return { 'paused' }
  end
  if tonumber(redis.call('HGET', KEYS[1], 'attempts')) >= tonumber(ARGV[5]) then
    redis.call('HSET', KEYS[1], 'error', ARGV[6])
    enter('failed')
    return { 'exhausted' }
  end
  if status == 'queued' and tonumber(ARGV[7]) > 0 then
    local running = 0
    for held in pairs(HELD) do
      running = running + redis.call('ZCARD', jobs_of_tenant(held))
    end
    if running >= tonumber(ARGV[7]) then return { 'limited' } end
  end
  charge()
  redis.call('HINCRBY', KEYS[1], 'attempts', 1)
  local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
  redis.call('HSET', KEYS[1], 'owner', ARGV[3], 'lease_until', now + tonumber(ARGV[4]), 'claimed_at', now)
  redis.call('HSETNX', KEYS[1], 'started_at', now)
  count('claims')
  redis.call('HSET', 'known:turns', redis.call('HGET', KEYS[1], 'tenant'), now)
  look_again_at(now + tonumber(ARGV[4]))
  enter('validating')
  return { 'ok', fence }
end

if operation == 'cancel' then
  if TERMINAL[status] then return { 'terminal' } end
  if status == 'queued' or status == 'paused' then
    enter('canceled')
  elseif status ~= 'canceling' then
    redis.call('HDEL', KEYS[1], 'pause_requested')
    enter('canceling')
  end
  return { 'ok', status }
end

if operation == 'pause' then
  if TERMINAL[status] then return { 'terminal' } end
  if status == 'canceling' then return { 'canceling' } end
  if status == 'queued' then
    pause()
  elseif status ~= 'paused' and redis.call('HSETNX', KEYS[1], 'pause_requested', 1) == 1 then
    add_event('{"type":"pause","status":"requested"}')
  end
  return { 'ok', status }
end

if operation == 'resume' then -- grace_ms; a pause that was only asked for is withdrawn
  if TERMINAL[status] then return { 'terminal' } end
  if status == 'paused' then
    queue_again(tonumber(ARGV[3]))
  elseif redis.call('HDEL', KEYS[1], 'pause_requested') == 1 then
    add_event('{"type":"pause","status":"withdrawn"}')
  else
    return { 'held' }
  end
  return { 'ok', status }
end

if operation == 'begin_delete' then -- from here on it is only deleted: it is never published again
  if not TERMINAL[status] or republish then return { 'busy' } end
  redis.call('HSET', KEYS[1], 'deleting', 1)
  redis.call('ZADD', ENDED, 0, id)
  return { 'ok', status }
end

if operation == 'delete' then
  if not TERMINAL[status] or republish then return { 'busy' } end
  redis.call('ZREM', ENDED, id)
  redis.call('ZREM', jobs_of_tenant(), id)
  redis.call('ZREM', jobs_of_tenant(status), id)
  redis.call('ZREM', KEYS[3], id)
  redis.call('DEL', KEYS[1], KEYS[2])
  return { 'ok', status }
end

if operation == 'republish' then -- grace_ms, target JSON, sealed token or ""
  if redis.call('HEXISTS', KEYS[1], 'deleting') == 1 then return { 'missing' } end
  if status ~= 'succeeded' then return { 'unfinished' } end
  if republish then return { 'held' } end
  redis.call('HSET', KEYS[1], 'republish', ARGV[4])
  if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'secret', ARGV[5]) end
  add_event('{"type":"republish","status":"queued"}')
  look_again_at(now + tonumber(ARGV[3]))
  return { 'ok', status }
end

if operation == 'look_again' then -- after_ms: put off the next look at an open job
  if TERMINAL[status] and not republish then return { 'terminal' } end
  if status == 'paused' then return { 'paused' } end
  look_again_at(now + tonumber(ARGV[3]))
  return { 'ok', status }
end

if operation == 'wait' then -- what for, "" for nothing
  if status ~= 'queued' and not (HELD[status] and lease_until() <= now) then return { 'held' } end
  wait_for(ARGV[3])
  return { 'ok', status }
end

-- What follows is for the owner of the lease alone: fence is ARGV[3].
if not (HELD[status] or republish) or redis.call('HGET', KEYS[1], 'fence') ~= ARGV[3] or lease_until() <= now then
  return { 'lost' }
end

if operation == 'heartbeat' then -- lease_ms
  redis.call('HSET', KEYS[1], 'lease_until', now + tonumber(ARGV[4]))
  look_again_at(now + tonumber(ARGV[4]))
  return { 'ok', status }
end

if operation == 'event' then -- event JSON, then field, value, ... to set with it
  if #ARGV > 4 then redis.call('HSET', KEYS[1], unpack(ARGV, 5)) end
  add_event(ARGV[4])
  return { 'ok', status }
end

if operation == 'run' then
  if status == 'validating' then enter('running') end
  return { 'ok', status }
end

if operation == 'republished' then -- result JSON
  if not republish then return { 'lost' } end
  redis.call('HSET', KEYS[1], 'result', ARGV[4])
  end_republish()
  return { 'ok', status }
end

if operation == 'finish' then -- status, field, value: result or error
  if republish then return { 'lost' } end
  if status == 'canceling' then
    enter('canceled')
  else
    redis.call('HSET', KEYS[1], ARGV[5], ARGV[6])
    enter(ARGV[4])
  end
  return { 'ok', status }
end

if operation == 'release' then -- grace_ms, "1" when the attempt does not count
  if republish then
    if ARGV[5] == '1' then redis.call('HINCRBY', KEYS[1], 'republish_attempts', -1) end
    redis.call('HDEL', KEYS[1], 'owner', 'lease_until', 'phase', 'progress')
    look_again_at(now + tonumber(ARGV[4]))
    return { 'ok', 'queued' }
  end
  if status == 'canceling' then
    enter('canceled')
  else
    if ARGV[5] == '1' then redis.call('HINCRBY', KEYS[1], 'attempts', -1) end
    if pause_requested() then pause() else queue_again(tonumber(ARGV[4])) end
  end
  return { 'ok', status }
end

return redis.error_reply('unknown operation ' .. operation)
