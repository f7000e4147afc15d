-- What a worker that woke up is to run: of the jobs that it can take, the oldest one of the tenant that has the fewest
-- running; among those, of the one whose turn was longest ago. So no tenant's flood keeps another's job waiting. A tenant
-- at its limit waits.
--
-- It can take a job for a GPU that fits into the memory free there, and one for a CPU where it serves those. A job with
-- the device auto is for a GPU where a living worker has one of its size, else for a CPU (app/jobs/placement.py).
-- What fits the worker's GPU but not into what is free of it is passed over for a while; then the worker takes nothing
-- else, so smaller jobs cannot keep a large one waiting for ever.
--
-- KEYS: 1 tenants (set: those that ever had a job), 2 turns (hash: when a job of a tenant was last claimed)
-- ARGV: 1 the most jobs of a tenant that run at once, 0: any number
--       2 bytes of the worker's GPU, -1: it serves none; 3 what of them is free; 4 "1" where it serves jobs for CPUs
--       5 bytes of the largest GPU of any living worker, -1: there is none
--       6 for how long a job that does not fit now is passed over, ms
--       7 the job that the wake-up is for, or ""
-- Returns {a job's id or "", and the id of one that waits and which only another worker can take, or ""}.

local limit, total, free, largest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])
local serves_cpu, patience, named = ARGV[4] == '1', tonumber(ARGV[6]), ARGV[7]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function fits(id) -- "yes"; "later" where the GPU is large enough but not free enough; "no"
  local needs = cjson.decode(redis.call('HGET', 'known:job:' .. id, 'needs') or '{"device":"auto","gpu_memory_bytes":0}')
  local need = needs.gpu_memory_bytes
  if needs.device ~= 'cpu' and need <= total then return need <= free and 'yes' or 'later' end
  if serves_cpu and (needs.device == 'cpu' or (needs.device == 'auto' and need > largest)) then return 'yes' end
  return 'no'
end

if named ~= '' then -- where its worker died, or it is to be published again, it does not wait for its turn
  local job = 'known:job:' .. named
  local status = redis.call('HGET', job, 'status')
  if tonumber(redis.call('HGET', job, 'lease_until') or '0') <= now then
    local anybodys = status == 'canceling' or redis.call('HEXISTS', job, 'pause_requested') == 1
    if anybodys or redis.call('HEXISTS', job, 'republish') == 1 then return { named, '' } end
    if status == 'validating' or status == 'running' then
      return fits(named) == 'yes' and { named, '' } or { '', named }
    end
  end
end

local function before(a, b)
  if a.running ~= b.running then return a.running < b.running end
  if a.turn ~= b.turn then return a.turn < b.turn end
  return a.created_at < b.created_at
end

local best, passed_over, held = nil, '', false

local function oldest_that_fits(queued)
  local page, start = 50, 0
  while true do
    local found = redis.call('ZRANGE', queued, start, start + page - 1, 'WITHSCORES')
    for place = 1, #found, 2 do
      local id, created_at, answer = found[place], tonumber(found[place + 1]), fits(found[place])
      if answer == 'yes' then return id, created_at end
      if answer == 'later' and now - created_at > patience then held = true end
      if answer == 'no' and passed_over == '' then passed_over = id end
    end
    if #found < 2 * page then return nil end
    start = start + page
  end
end

for _, tenant in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local jobs = 'known:tenant:' .. tenant .. ':jobs:'
  local running = 0
  for _, status in ipairs({ 'validating', 'running', 'canceling' }) do
    running = running + redis.call('ZCARD', jobs .. status)
  end
  if limit == 0 or running < limit then
    local id, created_at = oldest_that_fits(jobs .. 'queued')
    if id then
      local turn = tonumber(redis.call('HGET', KEYS[2], tenant) or '0')
      local candidate = { id = id, running = running, turn = turn, created_at = created_at }
      if not best or before(candidate, best) then best = candidate end
    end
  end
end
return { best and not held and best.id or '', passed_over }
