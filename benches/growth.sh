#!/usr/bin/env bash
# Throughput and p99 as the database grows: stored coupons, series, organisations. Requests for one coupon over 128 connections. Each
# size has a database of its own and is compared with the smallest of its round, in random order; for stored coupons, pgbench inserts
# the same row beside it. Prints a table; takes about two minutes. GROWTH=10 adds ten million stored coupons (some minutes, 4 GB of
# disk), GROWTH=100 also a hundred million (40 GB).
#
#   benches/growth.sh target/release/coupon-issuer        SECONDS_EACH=2 ROUNDS=5 GROWTH=10
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-2}
rounds=${ROUNDS:-5}
millions=(1)
[ "${GROWTH:-1}" -lt 10 ] || millions+=(10)
[ "${GROWTH:-1}" -lt 100 ] || millions+=(100)
# shellcheck source=start.sh
. "$here/start.sh"
declare -A to at rates bares
at_port=$port
urls=()
add() { # name of a size: its database is that of url
    serve "$at_port"
    urls+=("$url")
    to[$1]=127.0.0.1:$at_port
    at[$1]=$url
    at_port=$((at_port + 1))
}
sizes=(none)
database none
add none
for count in "${millions[@]}"; do
    SECONDS=0
    database "stored$count"
    sql "$url" -v millions="$count" -f "$here/stored.sql" > /dev/null
    echo "$count million coupons stored in $SECONDS s" >&2
    add "stored$count"
    sizes+=("stored$count")
done
database many
add_many 100000 1000
add many
sizes+=(series1000 series100000 organisations)
for size in series1000 series100000 organisations; do
    to[$size]=${to[many]}
    at[$size]=${at[many]}
done

drive() { # size, by what
    local TO=${to[$1]}
    export TO
    case $1 in
        series*) SPREAD="${1#series} 1000001" "$2" "$seconds" ;;
        organisations) CALLERS=$data/tills SERIES=1001 "$2" "$seconds" ;;
        *) SERIES=1001 "$2" "$seconds" ;;
    esac
}
began=${EPOCHREALTIME/./} # the customers of issue.lua have room for two hours
for size in "${sizes[@]}"; do drive "$size" warm; done
# After a checkpoint, Postgres logs the whole page at the first change of a page. The measurement starts after that phase: checkpoints
# are half an hour apart, and nearly every index page of ten million coupons changes in the first minute.
for count in "${millions[@]}"; do
    TO=${to[stored$count]} SERIES=1001 load $((count < 10 ? 5 * count : 50))
done
for round in $(seq "$rounds"); do
    for size in $(shuf -e "${sizes[@]}"); do
        before=$(sql "$server" -c "select pg_current_wal_lsn()")
        drive "$size" load
        note "growth.$size.wal" $(($(sql "$server" -c "select pg_current_wal_lsn() - '$before'") / requests))
        rates[$size]=$rate
        note "growth.$size" "$rate"
        note "growth.$size.p99" "$(awk -v us="$p99" 'BEGIN { printf "%.1f", us / 1000 }')"
        if [[ $size = none || $size = stored* ]]; then
            url=${at[$size]}
            bare "$seconds"
            bares[$size]=$inserted
            note "growth.$size.bare" "$inserted"
        fi
    done
    for size in "${sizes[@]}"; do
        note "growth.$size.to_none" "$(ratio "${rates[$size]}" "${rates[none]}")"
        [ -z "${bares[$size]:-}" ] || note "growth.$size.bare.to_none" "$(ratio "${bares[$size]}" "${bares[none]}")"
    done
    echo "round $round: $(for size in "${sizes[@]}"; do echo -n "$size ${rates[$size]} (bare ${bares[$size]:--})  "; done)" >&2
done
check_tally "${urls[@]}"

echo "| what has grown | requests/s (median of $rounds) | p99 (ms) | log for each (bytes) | to the first row (lowest, median, highest) | bare insert likewise |"
echo "|---|---|---|---|---|---|"
figures() { echo "$(median "growth.$1") | $(median "growth.$1.p99") | $(median "growth.$1.wal")"; }
row() {
    local bare=
    [ ! -e "$data/notes/growth.$1.bare" ] || bare=$(spread "growth.$1.bare.to_none")
    echo "| $2 | $(figures "$1") | $(spread "growth.$1.to_none") | $bare |"
}
echo "| nothing: no coupon stored at first, one series, one organisation | $(figures none) | 1 | 1 |"
for count in "${millions[@]}"; do row "stored$count" "$count million coupons stored"; done
row series1000 "coupons of 1,000 series"
row series100000 "coupons of 100,000 series"
row organisations "1,000 organisations, each with a till of its own"
keep_figures
