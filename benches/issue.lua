-- The load of the benchmarks, for wrk with one thread. Every request is for another customer, unless CUSTOMERS is set.
--
--   SERIES         the ids of the series in each request: 1001,1002
--   SPREAD         instead of it: each request has one of so many series, from this id on: 10 1001
--   AUTHORIZATION  the header of that name
--   CALLERS        instead of it: a file with one such header a line, of which each request has another
--   KEYED          where it is set, each request has an Idempotency-Key
--   FIRST          the number of the first customer: below 2^33, and not one that was used before
--   THINK          where it is set, each connection waits so many milliseconds on average before each request: between none and twice
--   CUSTOMERS      where it is set, there are so many customers, who come again and again
--
-- The last line it prints: requests, microseconds, failures of any kind, median and 99th percentile in microseconds.
local number = tonumber(os.getenv("FIRST"))
local customers = tonumber(os.getenv("CUSTOMERS"))
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

-- A number below 2^40 for each below 2^33, as if by chance, but none twice: neighbours in an index would flatter the figures.
-- The halves are mixed into each other by turns. All of it fits a double; load.js and stored.sql do the same.
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

-- Put together here and not by wrk.format, which costs several times as much, on the cores of whom it drives.
local heads = {}
function init()
  for place, authorization in ipairs(callers) do
    heads[place] = "POST /v2/coupon/bulk/issue HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port
      .. "\r\nContent-Type: application/json\r\nAuthorization: " .. authorization .. "\r\n"
  end
end

if os.getenv("THINK") then
  local longest = 2 * tonumber(os.getenv("THINK"))
  function delay() return math.random(0, longest) end
end

function request()
  number = number + 1
  local id = string.format("%013.0f", scattered(customers and number % customers or number))
  local ids = series
  if spread then ids = lowest + scattered(number) % spread end
  local body = '{"seriesIds":[' .. ids .. '],"customer":{"id":"' .. id .. '"}}'
  local head = heads[number % #heads + 1]
  if keyed then head = head .. "Idempotency-Key: bill-" .. id .. "\r\n" end
  return head .. "Content-Length: " .. #body .. "\r\n\r\n" .. body
end

function done(summary, latency)
  local errors = summary.errors
  local failures = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("%d %d %d %d %d\n", summary.requests, summary.duration, failures,
    latency:percentile(50), latency:percentile(99)))
end
