#!/usr/bin/env bash
# Coupons a second, durably issued over HTTP (fsync on, 64 connections) at 1, 2 and 10 series a request, beside pgbench
# inserting the same row with the same indexes on the same server. Prints a table; takes about two minutes.
#
#   benches/throughput.sh target/release/coupon-issuer        SECONDS_EACH=10 ROUNDS=3
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-8}
rounds=${ROUNDS:-3}
listen=127.0.0.1:18080

data=$(mktemp -d "${TMPDIR:-/tmp}/coupon-issuer-bench.XXXXXX")
chmod 755 "$data"
"$binary" demo --listen "$listen" --data-dir "$data/demo" > "$data/log" 2>&1 &
service=$!
trap 'kill "$service" 2>/dev/null; wait "$service" 2>/dev/null; rm -rf "$data"' EXIT
for _ in $(seq 300); do
    grep -q 'serving' "$data/log" && break
    kill -0 "$service" 2>/dev/null || { cat "$data/log" >&2; exit 1; }
    sleep 0.2
done
url=$(grep -o "postgres://[^']*" "$data/log" | head -n 1)
bin=$(grep -o "[^ ]*psql '" "$data/log" | head -n 1 | sed "s/psql '//")
DATABASE_URL=$url "$binary" apply "$here/series.toml" > /dev/null

issue() { # series in a request
    SERIES=$1 wrk -t1 -c64 -d"${seconds}s" -s "$here/issue.lua" "http://$listen" > "$data/wrk"
    if grep -q 'Non-2xx' "$data/wrk"; then cat "$data/wrk" >&2; exit 1; fi
    awk -v series="$1" '/Requests\/sec/ { printf "%.0f\n", $2 * series }' "$data/wrk"
}
bare() { # rows in a script run, each its own transaction
    "${bin}pgbench" -n -c16 -j2 -T"$seconds" -M prepared -f "$here/bare_insert.sql" "$url" 2>/dev/null \
        | awk '/^tps/ { printf "%.0f\n", $3 }'
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# Each figure stands beside the bare insert of its own round: a machine's speed changes from minute to minute.
issue 1 > /dev/null # warm
for round in $(seq "$rounds"); do
    scale=$(bare)
    echo "$scale" >> "$data/bare"
    for series in 1 2 10; do
        figure=$(issue "$series")
        echo "$figure" >> "$data/issued.$series"
        awk -v f="$figure" -v b="$scale" 'BEGIN { printf "%.3f\n", f / b }' >> "$data/ratio.$series"
    done
    echo "round $round: bare insert $scale, 1 series $(tail -n1 "$data/issued.1")," \
        "2 series $(tail -n1 "$data/issued.2"), 10 series $(tail -n1 "$data/issued.10")" >&2
done

stored=$("${bin}psql" -qAt "$url" -c "select count(*) || ' coupons stored in ' || count(distinct xmin::text) || ' transactions'
                                        from coupon where till_id = 'store.server'")
echo "| | coupons/s (median of $rounds) | to the bare insert of the same round |"
echo "|---|---|---|"
echo "| bare insert, pgbench, 16 clients | $(median < "$data/bare") | 1.00 |"
for series in 1 2 10; do
    ratio=$(median < "$data/ratio.$series")
    printf '| %d series a request | %d | %.2f |\n' "$series" "$(median < "$data/issued.$series")" "$ratio"
done
echo "$stored"
