#!/usr/bin/env bash
# Latency of a request for one coupon, of this service and the baseline (baseline.rs): at 25, 50 and 75 % of the peak rate of each, from
# 256 clients that pause for a random time between requests; and for a single client. The load is wrk on one core; the service and
# Postgres have the others, so that the load does not slow them down. (k6 at a constant rate stalls on one core: for 50 ms in one of a
# hundred requests to /healthz at 2,800 per second.) Prints two tables; takes about two minutes. Needs taskset.
#
#   benches/latency.sh target/release/coupon-issuer        SECONDS_EACH=4 ROUNDS=3
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-4}
rounds=${ROUNDS:-3}
last=$(($(nproc) - 1))
pin_service="taskset -c 0-$((last > 0 ? last - 1 : 0))"
pin_load="taskset -c $last"
# shellcheck source=start.sh
. "$here/start.sh"
database latency
serve "$port"
serve_baseline
export SERIES=1001
targets=(service baseline)
declare -A single at=([service]=$listen [baseline]=$baseline_listen) peak name=([service]="this service" [baseline]="the baseline")
clients=256

for who in "${targets[@]}"; do TO=${at[$who]} warm; done
for _ in $(seq "$rounds"); do
    for who in $(shuf -e "${targets[@]}"); do
        TO=${at[$who]} load "$seconds"
        note "peak.$who" "$rate"
    done
done
for who in "${targets[@]}"; do
    peak[$who]=$(median "peak.$who")
    echo "${name[$who]}: peak ${peak[$who]} requests/s" >&2
done

for round in $(seq "$rounds"); do
    for percent in $(shuf -e 25 50 75); do
        for who in $(shuf -e "${targets[@]}"); do
            CONNECTIONS=$clients THINK=$((100000 * clients / (peak[$who] * percent))) TO=${at[$who]} load "$seconds"
            note "latency.$who.$percent.rate" "$rate"
            for figure in p50 p99; do note "latency.$who.$percent.$figure" "$(ratio "${!figure}" 1000)"; done
            note "latency.$who.$percent.p99.to_p50" "$(ratio "$p99" "$p50")"
            echo "round $round: ${name[$who]} at $percent %: $rate requests/s, p50 $p50, p99 $p99 us" >&2
        done
    done
    for _ in 1 2 3; do # the latencies of a single client differ little, so measure more often
        for who in $(shuf -e "${targets[@]}"); do
            CONNECTIONS=1 TO=${at[$who]} load 1
            note "single.$who.p50" "$p50"
            note "single.$who.p99" "$p99"
            single[$who]=$p50
        done
        note single.service.to_baseline "$(ratio "${single[service]}" "${single[baseline]}")"
    done
done
check_tally "$url"

echo "| $clients clients who pause between requests (median of $rounds) | requests/s | p50 (ms) | p99 (ms) | p99 / p50 (lowest, median, highest) |"
echo "|---|---|---|---|---|"
for who in "${targets[@]}"; do
    for percent in 25 50 75; do
        l=latency.$who.$percent
        echo "| ${name[$who]}, $percent % of its peak of ${peak[$who]} | $(median "$l.rate") | $(median "$l.p50") | $(median "$l.p99")" \
            "| $(spread "$l.p99.to_p50") |"
    done
done
echo
echo "| one client, one connection | p50 (µs) | p99 (µs) | p50 to the baseline's (lowest, median, highest) |"
echo "|---|---|---|---|"
echo "| this service | $(median single.service.p50) | $(median single.service.p99) | $(spread single.service.to_baseline) |"
echo "| the baseline | $(median single.baseline.p50) | $(median single.baseline.p99) | 1 |"
keep_figures
