#!/usr/bin/env bash
# What authentication costs once it is warm: coupons a second over 64 connections with a till's Basic credentials, with a token,
# and with a token of an hour that is another one in each round. Interleaved; about two minutes.
#
#   benches/authentication.sh target/release/coupon-issuer        SECONDS_EACH=5 ROUNDS=7
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-5}
rounds=${ROUNDS:-7}
# shellcheck source=start.sh
. "$here/start.sh"
DATABASE_URL=$url "$binary" apply "$here/series.toml" > /dev/null
token() {
    curl -sSf -u crm:crm-secret -d grant_type=client_credentials "http://$listen/oauth/token" \
        | sed 's/.*"access_token":"\([^"]*\)".*/\1/'
}

export SERIES=1001
issue "$seconds" > /dev/null # warm
kept="Bearer $(token)"
for _ in $(seq "$rounds"); do
    issue "$seconds" >> "$data/basic"
    AUTHORIZATION=$kept issue "$seconds" >> "$data/kept"
    AUTHORIZATION="Bearer $(token)" issue "$seconds" >> "$data/new"
done
echo "| credentials | requests/s (median of $rounds) |"
echo "|---|---|"
echo "| Basic | $(median < "$data/basic") |"
echo "| a token | $(median < "$data/kept") |"
echo "| a token that is new each round | $(median < "$data/new") |"
