#!/usr/bin/env bash
# Two replicas behind a balancer (haproxy, which asks /readyz twice a second), a load at a fixed rate, and meanwhile each replica
# in turn is told to stop and started again, three times over. Prints how many requests failed. About a minute. Needs k6
# (K6=path/to/k6) and haproxy.
#
#   benches/rolling_restart.sh target/release/coupon-issuer        RATE=1500
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
rate=${RATE:-1500}
k6=${K6:-k6}
# shellcheck source=start.sh
. "$here/start.sh" # for its Postgres
DATABASE_URL=$url "$binary" apply "$here/series.toml" > /dev/null
ports=(18081 18082)
replicas=()
start() { # which
    DATABASE_URL=$url COUPON_ISSUER__HTTP__LISTEN=127.0.0.1:${ports[$1]} COUPON_ISSUER__METRICS__LISTEN='' \
        COUPON_ISSUER__RATE_LIMIT__PER_MINUTE=-1 "$binary" serve >> "$data/replica$1" 2>&1 &
    replicas[$1]=$!
    for _ in $(seq 100); do
        "$binary" healthcheck "http://127.0.0.1:${ports[$1]}/readyz" 2> /dev/null && return
        sleep 0.1
    done
    cat "$data/replica$1" >&2
    return 1
}
start 0
start 1
cat > "$data/haproxy.cfg" <<CFG
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 30s
    option redispatch
frontend callers
    bind 127.0.0.1:18090
    default_backend replicas
backend replicas
    option httpchk GET /readyz
    default-server check inter 500ms fall 1 rise 1
    server a 127.0.0.1:${ports[0]}
    server b 127.0.0.1:${ports[1]}
CFG
haproxy -db -f "$data/haproxy.cfg" > "$data/haproxy" 2>&1 &
balancer=$!
trap 'kill "$balancer" "${replicas[@]}" "$service" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$data"' EXIT
sleep 2

SERIES=1001 URLS=http://127.0.0.1:18090 RATE=$rate DURATION=45s "$k6" run --quiet --log-output=none "$here/overload.js" > "$data/k6" &
load=$!
restarts=0
while sleep 3 && kill -0 "$load" 2> /dev/null && [ "$restarts" -lt 6 ]; do
    which=$((restarts % 2))
    kill "${replicas[$which]}"
    wait "${replicas[$which]}" # exits 0, or the script ends here
    start "$which"
    restarts=$((restarts + 1))
done
wait "$load"
read -r answered away failed unsent median p99 longest < "$data/k6"
echo "$restarts restarts under $rate requests/s: $answered answered, $away turned away, $failed failed, $unsent not sent;" \
    "median $median ms, p99 $p99 ms, longest $longest ms"
