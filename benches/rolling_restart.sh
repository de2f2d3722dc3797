#!/usr/bin/env bash
# Restarts two replicas in turn, three times each, behind a load balancer (haproxy, which probes /readyz twice a second) under a load
# at a fixed rate. Prints how many requests failed. Takes about a minute. Needs k6 (K6=path/to/k6) and haproxy.
#
#   benches/rolling_restart.sh target/release/coupon-issuer        RATE=1500
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
rate=${RATE:-1500}
DRAIN_SECONDS=3 # the default
# shellcheck source=start.sh
. "$here/start.sh"
find_k6
database rolling_restart
replicas=()
start() { # which
    serve $((port + $1))
    replicas[$1]=$service
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
    bind 127.0.0.1:$((port + 90))
    default_backend replicas
backend replicas
    option httpchk GET /readyz
    default-server check inter 500ms fall 1 rise 1
    server a 127.0.0.1:$port
    server b 127.0.0.1:$((port + 1))
CFG
haproxy -db -f "$data/haproxy.cfg" > "$data/haproxy" 2>&1 &
started+=($!)
sleep 2

{
    SERIES=1001 TO=127.0.0.1:$((port + 90)) RATE=$rate k6_load 45
    echo "$answered answered, $turned_away turned away, $failed failed, $unsent not sent;" \
        "median $p50 ms, p99 $p99 ms, longest $longest ms" > "$data/figures"
} &
k6_at_work=$!
restarts=0
while sleep 3 && kill -0 "$k6_at_work" 2> /dev/null && [ "$restarts" -lt 6 ]; do
    which=$((restarts % 2))
    end "${replicas[$which]}" # exits 0, or the script ends here
    start "$which"
    restarts=$((restarts + 1))
done
wait "$k6_at_work" || fail "the load failed"
echo "$restarts restarts under $rate requests/s: $(cat "$data/figures")"
