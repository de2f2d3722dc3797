#!/usr/bin/env bash
# What a limit costs, and what a long transaction (a backup, a report) costs beside it: coupons a second over 128 connections
# of one series without a limit, of one with a cap, and of one that gives out uploaded codes; then the same with a
# snapshot held all the while, and at last the answers of a pool that has become empty meanwhile. About two minutes.
#
#   benches/hot_series.sh target/release/coupon-issuer        SECONDS_EACH=5 ROUNDS=3
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-5}
rounds=${ROUNDS:-3}
# shellcheck source=start.sh
. "$here/start.sh"
DATABASE_URL=$url "$binary" apply "$here/series.toml" > /dev/null
codes() { # so many, from the number on
    awk -v n="$1" -v from="$2" 'BEGIN { for (i = from; i < from + n; i++) printf "C%08d\n", i }' > "$data/codes"
    DATABASE_URL=$url "$binary" codes import --org 1 --series "$3" "$data/codes" > /dev/null
}
codes 1000000 0 1012
codes 50000 90000000 1013

measure() { # into files of this name
    for _ in $(seq "$rounds"); do
        for series in 1001 1011 1012; do SERIES=$series issue "$seconds" >> "$data/$1.$series"; done
    done
}
SERIES=1001 issue "$seconds" > /dev/null # warm
measure without
# Holds back vacuum for all that follows.
"${bin}psql" -qAt "$url" -c "begin isolation level repeatable read; select 1; select pg_sleep(3600)" > /dev/null 2>&1 &
sleep 1
measure with
for _ in $(seq 20); do
    SERIES=1013 issue "$seconds" > /dev/null
    left=$("${bin}psql" -qAt "$url" -c "select count(*) from pool_code where series_id = 1013")
    [ "$left" = 0 ] && break
done
empty=$(SERIES=1013 issue "$seconds")

echo "| requests/s (median of $rounds) | no other transaction | a long transaction |"
echo "|---|---|---|"
row() { echo "| $1 | $(median < "$data/without.$2") | $(median < "$data/with.$2") |"; }
row "one series without a limit" 1001
row "one series with a cap" 1011
row "one series of uploaded codes" 1012
echo "| a pool that became empty (5005) | | $empty |"
