#!/usr/bin/env bash
# Coupons a second, durably issued over HTTP (fsync on; 256 connections, 128 for ten series, 32 for fifty) at 1, 2, 10 and 50
# series a request: this service, and the plain way (plain_way.rs); beside pgbench inserting the same row with the same indexes on
# the same server.
# Prints a table; takes about three minutes.
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
serve_plain_way

issue() { # who, series a request
    local to=$listen connections=256
    [ "$1" = service ] || to=$plain_listen
    [ "$2" -lt 10 ] || connections=128
    [ "$2" -lt 50 ] || connections=32
    # Fifty series are the ten there are, five times over.
    TO=$to CONNECTIONS=$connections SERIES=$(for i in $(seq 0 $(($2 - 1))); do echo $((1001 + i % 10)); done | paste -sd, -) \
        load "$seconds"
    issued=$((rate * $2))
}

# Each figure stands between two bare inserts and is compared with their mean, and with its neighbour of the other kind: a
# machine's speed changes by the minute.
SERIES=1001 warm
TO=$plain_listen SERIES=1001 warm
bare "$seconds"
declare -A coupons
for round in $(seq "$rounds"); do
    for count in $(shuf -e "${counts[@]}"); do
        for who in $(shuf -e service plain); do
            before=$inserted
            issue "$who" "$count"
            bare "$seconds"
            note bare "$inserted"
            note "$who.$count" "$issued"
            note "$who.$count.to_bare" "$(ratio $((2 * issued)) $((before + inserted)))"
            coupons[$who]=$issued
            echo "round $round: $who, $count series $issued, bare insert before $before, after $inserted" >&2
        done
        note "service.$count.to_plain" "$(ratio "${coupons[service]}" "${coupons[plain]}")"
    done
done
check_tally "$url"
transactions=$(sql "$url" -c "select count(*) || ' of them in ' || count(distinct xmin::text) || ' transactions' from coupon
                               where origin_id not in (select origin_id from origin where till_id = 'pgbench')")

describe
echo
echo "| coupons/s (median of $rounds) | this service | the plain way | service to bare insert (lowest, median, highest) | service to plain way |"
echo "|---|---|---|---|---|"
for count in "${counts[@]}"; do
    echo "| $count series a request | $(median "service.$count") | $(median "plain.$count") |" \
        "$(spread "service.$count.to_bare") | $(spread "service.$count.to_plain") |"
done
echo "| bare insert, pgbench, 16 clients | $(median bare) | | 1 | |"
echo "$transactions" >&2
keep_figures
