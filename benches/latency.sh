#!/usr/bin/env bash
# How long a request for one coupon takes: at 25, 50 and 75 % of the peak rate (k6, at a constant rate, whatever becomes of the
# requests), this service's and the plain way's (plain_way.rs), each of its own peak; and for a client that is alone (wrk, one
# connection). The service and Postgres have all cores but one, the load has that one: else it is the load's own use of them that
# is measured. Prints two tables; takes about two minutes. Needs k6 (K6=path/to/k6) and taskset.
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
find_k6
database latency
serve "$port"
serve_plain_way
export SERIES=1001
whoms=(service plain)
declare -A single at=([service]=$listen [plain]=$plain_listen) peak by name=([service]="this service" [plain]="the plain way")
by_k6() { # seconds: any failure ends it
    k6_load "$1"
    [ $((turned_away + failed)) = 0 ] && [ "$answered" -gt 0 ] || fail "of k6's requests $turned_away were turned away, $failed failed"
    tally "$answered" 128
    settle
}

for who in "${whoms[@]}"; do TO=${at[$who]} warm; done
for _ in $(seq "$rounds"); do
    for who in $(shuf -e "${whoms[@]}"); do
        TO=${at[$who]} load "$seconds"
        note "peak.wrk.$who" "$rate"
        TO=${at[$who]} by_k6 "$seconds"
        note "peak.k6.$who" $((answered / seconds))
    done
done
# What k6 cannot drive by itself is no rate to ask of it: it needs more than wrk does.
for who in "${whoms[@]}"; do
    by[$who]=wrk
    [ $((100 * $(median "peak.k6.$who"))) -ge $((80 * $(median "peak.wrk.$who"))) ] || by[$who]=k6
    peak[$who]=$(median "peak.${by[$who]}.$who")
    note "peak.$who" "${peak[$who]}"
    echo "${name[$who]}: peak $(median "peak.wrk.$who") requests/s by wrk, $(median "peak.k6.$who") by k6" >&2
done

for round in $(seq "$rounds"); do
    for percent in $(shuf -e 25 50 75); do
        for who in $(shuf -e "${whoms[@]}"); do
            TO=${at[$who]} RATE=$((peak[$who] * percent / 100)) by_k6 "$seconds"
            note "latency.$who.$percent.unsent" "$unsent"
            for figure in p50 p99 p999; do note "latency.$who.$percent.$figure" "${!figure}"; done
            note "latency.$who.$percent.p99.to_p50" "$(ratio "$p99" "$p50")"
            echo "round $round: ${name[$who]} at $percent %: p50 $p50, p99 $p99, p99.9 $p999 ms, $unsent not sent" >&2
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

echo "| at a constant rate (median of $rounds) | requests/s | p50 (ms) | p99 (ms) | p99.9 (ms) | p99 / p50 (lowest, median, highest) | not even sent |"
echo "|---|---|---|---|---|---|---|"
for who in "${whoms[@]}"; do
    for percent in 25 50 75; do
        l=latency.$who.$percent
        echo "| ${name[$who]}, $percent % of the $(median "peak.$who") that ${by[$who]} drives at most | $((peak[$who] * percent / 100))" \
            "| $(median "$l.p50") | $(median "$l.p99") | $(median "$l.p999") | $(spread "$l.p99.to_p50") | $(median "$l.unsent") |"
    done
done
echo
echo "| one client, one connection | p50 (µs) | p99 (µs) | p50 to the plain way's (lowest, median, highest) |"
echo "|---|---|---|---|"
echo "| this service | $(median single.service.p50) | $(median single.service.p99) | $(spread single.service.to_plain) |"
echo "| the plain way | $(median single.plain.p50) | $(median single.plain.p99) | 1 |"
keep_figures
