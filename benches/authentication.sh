#!/usr/bin/env bash
# Cost of authentication with a warm cache: requests per second over 128 connections with a till's Basic credentials, with a token, and
# with a new token in each round. Short rounds in random order, because the speed of a machine changes by the minute. Takes about two
# minutes.
#
#   benches/authentication.sh target/release/coupon-issuer        SECONDS_EACH=1 ROUNDS=30
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-1}
rounds=${ROUNDS:-30}
# shellcheck source=start.sh
. "$here/start.sh"
database authentication
serve "$port"

export SERIES=1001
warm
basic=$AUTHORIZATION
kept="Bearer $(access_token)"
for _ in $(seq "$rounds"); do
    new="Bearer $(access_token)"
    for kind in $(shuf -e basic kept new); do
        AUTHORIZATION=${!kind} load "$seconds"
        note "authentication.$kind" "$rate"
    done
done
check_tally "$url"
echo "| credentials | requests/s (median of $rounds) |"
echo "|---|---|"
echo "| Basic | $(median authentication.basic) |"
echo "| a token | $(median authentication.kept) |"
echo "| a token that is new each round | $(median authentication.new) |"
