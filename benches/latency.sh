#!/usr/bin/env bash
# How long a request for one coupon takes: at 25, 50 and 75 % of the peak rate, this service's and the plain way's (plain_way.rs),
# each of its own peak, from 256 clients who wait between their requests, each for a time of its own; and for a client that is
# alone. All by wrk. The service and Postgres have all cores but one, the load has that one: else it is the load's own use of them
# that is measured. (k6 at a constant rate, on that one core, has stalls of its own: 50 ms in one of a hundred requests for
# /healthz at 2,800 a second.) Prints two tables; takes about two minutes. Needs taskset.
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
serve_plain_way
export SERIES=1001
whoms=(service plain)
declare -A single at=([service]=$listen [plain]=$plain_listen) peak name=([service]="this service" [plain]="the plain way")
clients=256

for who in "${whoms[@]}"; do TO=${at[$who]} warm; done
for _ in $(seq "$rounds"); do
    for who in $(shuf -e "${whoms[@]}"); do
        TO=${at[$who]} load "$seconds"
        note "peak.$who" "$rate"
    done
done
for who in "${whoms[@]}"; do
    peak[$who]=$(median "peak.$who")
    echo "${name[$who]}: peak ${peak[$who]} requests/s" >&2
done

for round in $(seq "$rounds"); do
    for percent in $(shuf -e 25 50 75); do
        for who in $(shuf -e "${whoms[@]}"); do
            CONNECTIONS=$clients THINK=$((100000 * clients / (peak[$who] * percent))) TO=${at[$who]} load "$seconds"
            note "latency.$who.$percent.rate" "$rate"
            for figure in p50 p99; do note "latency.$who.$percent.$figure" "$(ratio "${!figure}" 1000)"; done
            note "latency.$who.$percent.p99.to_p50" "$(ratio "$p99" "$p50")"
            echo "round $round: ${name[$who]} at $percent %: $rate requests/s, p50 $p50, p99 $p99 us" >&2
        done
    done
    for _ in 1 2 3; do # a single client's is short, and the differences are small
        for who in $(shuf -e "${whoms[@]}"); do
            CONNECTIONS=1 TO=${at[$who]} load 1
            note "single.$who.p50" "$p50"
            note "single.$who.p99" "$p99"
            single[$who]=$p50
        done
        note single.service.to_plain "$(ratio "${single[service]}" "${single[plain]}")"
    done
done
check_tally "$url"

echo "| $clients clients who wait in between (median of $rounds) | requests/s | p50 (ms) | p99 (ms) | p99 / p50 (lowest, median, highest) |"
echo "|---|---|---|---|---|"
for who in "${whoms[@]}"; do
    for percent in 25 50 75; do
        l=latency.$who.$percent
        echo "| ${name[$who]}, $percent % of its peak of ${peak[$who]} | $(median "$l.rate") | $(median "$l.p50") | $(median "$l.p99")" \
            "| $(spread "$l.p99.to_p50") |"
    done
done
echo
echo "| one client, one connection | p50 (µs) | p99 (µs) | p50 to the plain way's (lowest, median, highest) |"
echo "|---|---|---|---|"
echo "| this service | $(median single.service.p50) | $(median single.service.p99) | $(spread single.service.to_plain) |"
echo "| the plain way | $(median single.plain.p50) | $(median single.plain.p99) | 1 |"
keep_figures
