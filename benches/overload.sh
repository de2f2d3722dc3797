#!/usr/bin/env bash
# Load shedding: requests for fifty coupons at 1, 2 and 3 times the peak rate, then at half of it. The rate does not depend on the
# answers. The load runs on one core, the service and Postgres on the others, so that the load is not the bottleneck. Takes about two
# minutes. Needs k6 (K6=path/to/k6) and taskset.
#
#   benches/overload.sh target/release/coupon-issuer        SECONDS_EACH=20
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-20}
last=$(($(nproc) - 1))
pin_service="taskset -c 0-$((last > 0 ? last - 1 : 0))"
pin_load="taskset -c $last"
# shellcheck source=start.sh
. "$here/start.sh"
find_k6
database overload
serve "$port"
SERIES=$(for _ in 1 2 3 4 5; do seq 1001 1010; done | paste -sd, -) # a large request, so that a small load is too much
export SERIES
memory() { awk '/VmRSS/ { printf "%d", $2 / 1024 }' "/proc/$service/status"; }

warm 5
CONNECTIONS=32 load 10
peak=$rate
echo "peak of 32 connections: $peak requests/s of fifty coupons each; $(memory) MiB" >&2
echo "| load | requests/s | answered/s | 503/s | failed | median, p99, longest of the answered (ms) | memory (MiB) |"
echo "|---|---|---|---|---|---|---|"
row() { # name, rate, seconds
    RATE=$2 k6_load "$3"
    [ "$unsent" = 0 ] || echo "the load could not send $unsent of them" >&2
    echo "| $1 | $2 | $((answered / $3)) | $((turned_away / $3)) | $failed | $p50, $p99, $longest | $(memory) |"
}
for factor in 1 2 3; do row "$factor × the peak" $((peak * factor)) "$seconds"; done
row "then half of it" $((peak / 2)) 5
