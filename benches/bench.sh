#!/usr/bin/env bash
# Runs all benchmarks one after the other: throughput against a bare insert and the baseline, the kinds of requests against a bare
# insert, latency, growth, resources, and the bytes of keyed coupons. Prints the tables and keeps them in target/bench. Takes about a
# quarter of an hour; SECONDS_EACH and ROUNDS change that. GROWTH=10 also measures with ten million coupons stored. `make chart` draws the
# figures.
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
if [ "${#failed[@]}" != 0 ]; then
    echo "failed, so not measured: ${failed[*]}" >&2
    exit 1
fi
