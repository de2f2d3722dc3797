#!/usr/bin/env bash
# What authentication costs once it is warm: coupons a second over 128 connections with a till's Basic credentials, with a token,
# and with a token that is another one in each round. Short turns in a random order, since a machine's speed changes by the
# minute; about two minutes.
#
#   benches/authentication.sh target/release/coupon-issuer        SECONDS_EACH=1 ROUNDS=30
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-1}
rounds=${ROUNDS:-30}
# shellcheck source=start.sh
. "$here/start.sh"
DATABASE_URL=$url "$binary" apply "$here/series.toml" > /dev/null
token() {
    curl -sSf -u crm:crm-secret -d grant_type=client_credentials "http://$listen/oauth/token" \
        | sed 's/.*"access_token":"\([^"]*\)".*/\1/'
}

export SERIES=1001
issue 5 > /dev/null # warm
basic=$AUTHORIZATION
kept="Bearer $(token)"
for _ in $(seq "$rounds"); do
    new="Bearer $(token)"
    for kind in $(shuf -e basic kept new); do
        AUTHORIZATION=${!kind} issue "$seconds" >> "$data/$kind"
    done
done
echo "| credentials | requests/s (median of $rounds) |"
echo "|---|---|"
echo "| Basic | $(median < "$data/basic") |"
echo "| a token | $(median < "$data/kept") |"
echo "| a token that is new each round | $(median < "$data/new") |"
