#!/usr/bin/env bash
# Coupons a second, durably issued over HTTP (fsync on, 128 connections) at 1, 2 and 10 series a request, beside pgbench
# inserting the same row with the same indexes on the same server. Prints a table; takes about four minutes.
#
#   benches/throughput.sh target/release/coupon-issuer        SECONDS_EACH=6 ROUNDS=5
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-6}
rounds=${ROUNDS:-5}
# shellcheck source=start.sh
. "$here/start.sh"
DATABASE_URL=$url "$binary" apply "$here/series.toml" > /dev/null

command -v "${bin}pgbench" > /dev/null || { echo "pgbench is missing: install Postgres' contrib package" >&2; exit 1; }
bare() { # rows, each its own transaction
    "${bin}pgbench" -n -c16 -j2 -T"$seconds" -M prepared -f "$here/bare_insert.sql" "$url" 2>/dev/null \
        | awk '/^tps/ { printf "%.0f\n", $3 }'
}

# Each figure stands between two bare inserts and is compared with their mean: a machine's speed changes by the minute.
SERIES=1001 issue "$seconds" > /dev/null # warm
before=$(bare)
for round in $(seq "$rounds"); do
    for count in 1 2 10; do
        requests=$(SERIES=$(seq 1001 $((1000 + count)) | paste -sd, -) issue "$seconds")
        after=$(bare)
        figure=$((requests * count))
        echo "$after" >> "$data/bare"
        echo "$figure" >> "$data/issued.$count"
        awk -v f="$figure" -v b="$before" -v a="$after" 'BEGIN { printf "%.3f\n", 2 * f / (b + a) }' >> "$data/ratio.$count"
        echo "round $round: $count series $figure, bare insert before $before, after $after" >&2
        before=$after
    done
done

stored=$("${bin}psql" -qAt "$url" -c "select count(*) || ' coupons stored in ' || count(distinct xmin::text) || ' transactions'
                                        from coupon where till_id = 'store.server'")
echo "| | coupons/s (median of $rounds) | to the bare insert before and after (lowest, median, highest) |"
echo "|---|---|---|"
echo "| bare insert, pgbench, 16 clients | $(median < "$data/bare") | 1 |"
for count in 1 2 10; do
    spread="$(sort -n "$data/ratio.$count" | head -n 1), **$(median < "$data/ratio.$count")**, $(sort -n "$data/ratio.$count" | tail -n 1)"
    printf '| %d series a request | %d | %s |\n' "$count" "$(median < "$data/issued.$count")" "$spread"
done
echo "$stored"
