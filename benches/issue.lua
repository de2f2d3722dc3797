-- The load of the benchmarks: every request is for another customer. SERIES lists the ids of the series in each: 1001,1002;
-- AUTHORIZATION is the header of that name, else it is a till's.
local before = '{"seriesIds":[' .. os.getenv("SERIES") .. '],"customer":{"id":"'
local headers = {
  ["Content-Type"] = "application/json",
  -- store.server : md5(server123), as a till sends it
  ["Authorization"] = os.getenv("AUTHORIZATION") or "Basic c3RvcmUuc2VydmVyOjhhMTZhNmI3MDUwNWViMWYxZmY3Y2RjMGNkNTU1OWE3",
}
math.randomseed(os.time())

function request()
  -- As random as those of bare_insert.sql: neighbours in an index would flatter the figure.
  local customer = string.format("%.0f", math.random() * 1000000000000)
  return wrk.format("POST", "/v2/coupon/bulk/issue", headers, before .. customer .. '"}}')
end
