#!/usr/bin/env bash
# Cost of a limit, without and with a long transaction (a backup, a report) beside it: requests per second over 128 connections for a
# series without a limit, one with a cap, and one with uploaded codes; then the same while a snapshot is open; finally the answers of a
# pool that became empty meanwhile. Takes about two minutes.
#
#   benches/hot_series.sh target/release/coupon-issuer        SECONDS_EACH=5 ROUNDS=3
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-5}
rounds=${ROUNDS:-3}
# shellcheck source=start.sh
. "$here/start.sh"
database hot_series
serve "$port"
import_codes 1012 $((2 * 20000 * (seconds * rounds + 1))) # more than can be given out
import_codes 1013 50000 900000000

measure() { # under these names
    for _ in $(seq "$rounds"); do
        for series in $(shuf -e 1001 1011 1012); do
            SERIES=$series load "$seconds"
            note "$1.$series" "$rate"
        done
    done
}
SERIES=1001 warm
measure without
# Holds back vacuum from here on.
PGAPPNAME=bystander sql "$url" -c "begin isolation level repeatable read; select 1; select pg_sleep(3600)" > /dev/null 2>&1 &
sleep 1
measure with
check_tally "$url"
remaining=1
while [ "$remaining" != 0 ]; do
    UNTALLIED=1 SERIES=1013 load "$seconds"
    remaining=$(sql "$url" -c "select count(*) from pool_code where series_id = 1013")
done
UNTALLIED=1 SERIES=1013 load "$seconds"
empty=$rate

echo "| requests/s (median of $rounds) | no other transaction | a long transaction |"
echo "|---|---|---|"
row() { echo "| $1 | $(median "without.$2") | $(median "with.$2") |"; }
row "one series without a limit" 1001
row "one series with a cap" 1011
row "one series of uploaded codes" 1012
echo "| a pool that became empty (5005) | | $empty |"
