-- The load of the benchmarks, for wrk with one thread. Each request is for another customer, unless CUSTOMERS is set.
--
--   SERIES         the ids of the series in each request: 1001,1002
--   SPREAD         instead of it: the number of series, of which each request has one, and the lowest id: 10 1001
--   AUTHORIZATION  the header of that name
--   CALLERS        instead of it: a file with one such header per line, which the requests use in turn
--   KEYED          if set, each request has an Idempotency-Key of its own
--   FIRST          the number of the first customer: below 2^33, and not used before
--   THINK          if set, the average pause in milliseconds before each request: a random time from zero to twice that
--   CUSTOMERS      if set, the number of known customers, who return again and again
--   KNOWN          with CUSTOMERS: only every KNOWNth request is for a known customer, the others are for new ones: 5
--
-- The last line of its output: requests, microseconds, failures of any kind, median and 99th percentile in microseconds.
local number = tonumber(os.getenv("FIRST"))
local customers = tonumber(os.getenv("CUSTOMERS"))
local known = tonumber(os.getenv("KNOWN") or 1)
local keyed = os.getenv("KEYED")
local series = os.getenv("SERIES")
local spread, lowest
local callers = { os.getenv("AUTHORIZATION") }

if os.getenv("CALLERS") then
  callers = {}
  for line in io.lines(os.getenv("CALLERS")) do callers[#callers + 1] = line end
end
if os.getenv("SPREAD") then
  spread, lowest = os.getenv("SPREAD"):match("(%d+) (%d+)")
  spread, lowest = tonumber(spread), tonumber(lowest)
end

-- Maps numbers below 2^33 to pseudo-random numbers below 2^40 without collisions: neighbours in an index would make the figures too
-- good. It is a Feistel network, and all its numbers fit a double. load.js and stored.sql do the same.
local function mixed(v)
  local m = v * 648395 % 1048576
  return math.floor(m * m / 1024)
end
local function scattered(n)
  local low = n % 1048576
  local high = ((n - low) / 1048576 + mixed(low)) % 1048576
  low = (low + mixed(high)) % 1048576
  high = (high + mixed(low)) % 1048576
  return high * 1048576 + low
end

-- Built here, because wrk.format costs several times as much CPU, which the service would lack.
local heads = {}
function init()
  for index, authorization in ipairs(callers) do
    heads[index] = "POST /v2/coupon/bulk/issue HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port
      .. "\r\nContent-Type: application/json\r\nAuthorization: " .. authorization .. "\r\n"
  end
end

if os.getenv("THINK") then
  local longest = 2 * tonumber(os.getenv("THINK"))
  function delay() return math.random(0, longest) end
end

function request()
  number = number + 1
  local customer = number
  -- The known customers have the numbers from 0, which are below all numbers of new ones.
  if customers and number % known == 0 then customer = number / known % customers end
  local id = string.format("%013.0f", scattered(customer))
  local ids = series
  if spread then ids = lowest + scattered(number) % spread end
  local body = '{"seriesIds":[' .. ids .. '],"customer":{"id":"' .. id .. '"}}'
  local head = heads[number % #heads + 1]
  if keyed then head = head .. "Idempotency-Key: bill-" .. number .. "\r\n" end
  return head .. "Content-Length: " .. #body .. "\r\n\r\n" .. body
end

function done(summary, latency)
  local errors = summary.errors
  local failures = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("%d %d %d %d %d\n", summary.requests, summary.duration, failures,
    latency:percentile(50), latency:percentile(99)))
end
