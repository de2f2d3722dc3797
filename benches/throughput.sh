#!/usr/bin/env bash
# Coupons per second, durably issued over HTTP (fsync on; 256 connections, 128 for ten series, 32 for fifty), at 1, 2, 10 and 50 series
# per request: this service and the baseline (baseline.rs), beside pgbench, which inserts the same row with the same indexes on the
# same server. Prints a table; takes about three minutes.
#
#   benches/throughput.sh target/release/coupon-issuer        SECONDS_EACH=2 ROUNDS=5
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-2}
rounds=${ROUNDS:-5}
counts=(1 2 10 50)
# shellcheck source=start.sh
. "$here/start.sh"
database throughput
serve "$port"
serve_baseline

issue() { # service or baseline, series per request
    local to=$listen connections=256
    [ "$1" = service ] || to=$baseline_listen
    [ "$2" -lt 10 ] || connections=128
    [ "$2" -lt 50 ] || connections=32
    # Fifty series are the ten series five times.
    TO=$to CONNECTIONS=$connections SERIES=$(for i in $(seq 0 $(($2 - 1))); do echo $((1001 + i % 10)); done | paste -sd, -) \
        load "$seconds"
    issued=$((rate * $2))
}

# Each figure is measured between two bare inserts and compared with their mean, and with the next figure of the other service, because
# the speed of a machine changes by the minute.
SERIES=1001 warm
TO=$baseline_listen SERIES=1001 warm
bare "$seconds"
declare -A coupons
for round in $(seq "$rounds"); do
    for count in $(shuf -e "${counts[@]}"); do
        for who in $(shuf -e service baseline); do
            before=$inserted
            issue "$who" "$count"
            bare "$seconds"
            note bare "$inserted"
            note "$who.$count" "$issued"
            note "$who.$count.to_bare" "$(ratio $((2 * issued)) $((before + inserted)))"
            coupons[$who]=$issued
            echo "round $round: $who, $count series $issued, bare insert before $before, after $inserted" >&2
        done
        note "service.$count.to_baseline" "$(ratio "${coupons[service]}" "${coupons[baseline]}")"
    done
done
check_tally "$url"
transactions=$(sql "$url" -c "select count(*) || ' of them in ' || count(distinct xmin::text) || ' transactions' from coupon
                               where origin_id not in (select origin_id from origin where till_id = 'pgbench')")

describe
echo
echo "| coupons/s (median of $rounds) | this service | the baseline | service to bare insert (lowest, median, highest) | service to baseline |"
echo "|---|---|---|---|---|"
for count in "${counts[@]}"; do
    echo "| $count series a request | $(median "service.$count") | $(median "baseline.$count") |" \
        "$(spread "service.$count.to_bare") | $(spread "service.$count.to_baseline") |"
done
echo "| bare insert, pgbench, 16 clients | $(median bare) | | 1 | |"
echo "$transactions" >&2
keep_figures
