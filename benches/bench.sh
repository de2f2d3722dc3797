#!/usr/bin/env bash
# All of it, one group after the other: throughput beside a bare insert and beside the plain way, what kinds of requests cost,
# latency, growth, cost, and the bytes of keyed coupons. Prints their tables and how they compare with what is wanted, keeps both in
# target/bench, and draws benches/chart.svg. About ten minutes; SECONDS_EACH and ROUNDS change it, GROWTH=10 adds ten million
# coupons stored.
#
#   benches/bench.sh target/release/coupon-issuer        GROWTH=10
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
export RESULTS=$here/../target/bench
mkdir -p "$RESULTS"
: > "$RESULTS/figures"
: > "$RESULTS/tables.md"
group=
trap '[ -z "$group" ] || kill "$group" 2> /dev/null || true; wait' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

failed=()
for name in throughput kinds latency growth cost keyed_bytes; do
    SECONDS=0
    "$here/$name.sh" "$binary" > "$RESULTS/table" &
    group=$!
    wait "$group" || failed+=("$name")
    group=
    echo "$name: $SECONDS s" >&2
    { cat "$RESULTS/table"; echo; } | tee -a "$RESULTS/tables.md"
done
"$here/summary.sh" < "$RESULTS/figures" | tee -a "$RESULTS/tables.md"
if [ "${#failed[@]}" != 0 ]; then
    echo "not measured, as it failed: ${failed[*]}" >&2
    exit 1
fi
"$here/chart.sh" < "$RESULTS/figures" > "$RESULTS/chart.svg"
mv "$RESULTS/chart.svg" "$here/chart.svg"
