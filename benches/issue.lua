-- The load of the benchmarks: every request is for another customer. SERIES lists the ids of the series in each: 1001,1002;
-- AUTHORIZATION is the header of that name; where KEYED is set, each has an Idempotency-Key.
local before = '{"seriesIds":[' .. os.getenv("SERIES") .. '],"customer":{"id":"'
local headers = {
  ["Content-Type"] = "application/json",
  ["Authorization"] = os.getenv("AUTHORIZATION"),
}
math.randomseed(os.time())

function request()
  -- As random as those of bare_insert.sql: neighbours in an index would flatter the figure.
  if os.getenv("KEYED") then
    headers["Idempotency-Key"] = string.format("%.0f", math.random() * 1000000000000000)
  end
  local customer = string.format("%.0f", math.random() * 1000000000000)
  return wrk.format("POST", "/v2/coupon/bulk/issue", headers, before .. customer .. '"}}')
end
