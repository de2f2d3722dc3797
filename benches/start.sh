# Starts the service with a private Postgres of its own (fsync on), for the benchmarks, which source this file.
# Who sets pin_service (a command such as `taskset -c 0`) has both run under it.
# Sets: data (a directory that goes away at the end), listen, url (the database), bin (where pgbench and psql are) and
# AUTHORIZATION (the demo till's).
data=$(mktemp -d "${TMPDIR:-/tmp}/coupon-issuer-bench.XXXXXX")
chmod 755 "$data"
listen=127.0.0.1:18080
${pin_service:-} "$binary" demo --listen "$listen" --data-dir "$data/demo" > "$data/log" 2>&1 &
service=$!
trap 'kill "$service" 2>/dev/null; wait "$service" 2>/dev/null; rm -rf "$data"' EXIT
for _ in $(seq 300); do
    grep -q 'serving' "$data/log" && break
    kill -0 "$service" 2>/dev/null || { cat "$data/log" >&2; exit 1; }
    sleep 0.2
done
url=$(grep -o "postgres://[^']*" "$data/log" | head -n 1)
bin=$(grep -o "[^ ]*psql '" "$data/log" | head -n 1 | sed "s/psql '//")

# store.server : md5(server123), as a till sends it
export AUTHORIZATION="Basic c3RvcmUuc2VydmVyOjhhMTZhNmI3MDUwNWViMWYxZmY3Y2RjMGNkNTU1OWE3"
issue() { # requests a second of 128 connections (or CONNECTIONS); the series are in SERIES, for so many seconds
    ${pin_load:-} wrk -t1 -c"${CONNECTIONS:-128}" -d"$1s" -s "$here/issue.lua" "http://$listen" > "$data/wrk"
    if grep -q 'Non-2xx' "$data/wrk"; then cat "$data/wrk" >&2; exit 1; fi
    awk '/Requests\/sec/ { printf "%.0f\n", $2 }' "$data/wrk"
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
