#!/usr/bin/env bash
# Cost of the kinds of requests: requests per second over 128 connections, one coupon each. The simplest kind has Basic credentials and
# a series without limits; the others have a token, an Idempotency-Key, or a series of another kind. Short rounds in random order, each
# compared with the simplest kind of its round. Takes about two minutes.
#
#   benches/kinds.sh target/release/coupon-issuer        SECONDS_EACH=1 ROUNDS=11
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-1}
rounds=${ROUNDS:-11}
# shellcheck source=start.sh
. "$here/start.sh"
database kinds
serve "$port"
import_codes 1012 $((20000 * (seconds * rounds + 2))) # more than can be given out

declare -A rates
token=$(access_token)
kind() { # its load
    case $1 in
        basic) SERIES=1001 load "$seconds" ;;
        token) AUTHORIZATION="Bearer $token" SERIES=1001 load "$seconds" ;;
        keyed) KEYED=1 SERIES=1001 load "$seconds" ;;
        many) SPREAD='10 1001' load "$seconds" ;;
        capped) SERIES=1011 load "$seconds" ;;
        limited) CUSTOMERS=10000 SERIES=1014 load "$seconds" ;;
        pool) SERIES=1012 load "$seconds" ;;
        resent) UNTALLIED=1 CUSTOMERS=1000 SERIES=1015 load "$seconds" ;;
    esac
}
kinds=(basic token keyed many capped limited pool resent)
SERIES=1001 warm
for kind in "${kinds[@]}"; do kind "$kind"; done # also gives each of the thousand customers the coupon that is resent later
tally 1000

for round in $(seq "$rounds"); do
    for kind in $(shuf -e "${kinds[@]}"); do
        kind "$kind"
        note "kind.$kind" "$rate"
        rates[$kind]=$rate
    done
    for kind in "${kinds[@]}"; do note "kind.$kind.to_basic" "$(ratio "${rates[$kind]}" "${rates[basic]}")"; done
    note kind.capped.to_many "$(ratio "${rates[capped]}" "${rates[many]}")"
    echo "round $round: $(for kind in "${kinds[@]}"; do echo -n "$kind ${rates[$kind]}  "; done)" >&2
done
check_tally "$url"

echo "| a request for one coupon | requests/s (median of $rounds) | to the first row (lowest, median, highest) |"
echo "|---|---|---|"
row() { echo "| $2 | $(median "kind.$1") | $(spread "kind.$1.to_basic") |"; }
echo "| Basic, of one series without limits | $(median kind.basic) | 1 |"
row token "with a token"
row keyed "with an Idempotency-Key"
row many "of one of ten such series"
row capped "of one series with a cap"
row limited "of one series with a limit for each customer, ten thousand customers"
row pool "of one series of uploaded codes"
row resent "of one series that the customer has: sent again"
keep_figures
