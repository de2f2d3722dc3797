#!/usr/bin/env bash
# The kinds of traffic that the service gets, each beside the bare insert: pgbench, which inserts the same row with the same indexes on
# the same server. The load has 128 connections. A request is for one coupon, except those of `day`.
#
#   first      one coupon per customer, which is the default of a series; the customer has none yet
#   three      at most three per customer; the customer has none yet
#   known      one per customer, who has it: the answer is 709, and nothing is written
#   resend     one per customer, who has it and gets it again; nothing is written
#   pool       uploaded codes
#   key        no limits, each request with an Idempotency-Key
#   orgs       no limits; 300 organisations, each with its own till
#   wide       no limits; 20,000 series of one organisation
#   unlimited  no limits: the simplest
#   day        a mixture: two series, the one of `first` and the one of `resend`, and an Idempotency-Key. One customer in five is known:
#              one entity of the answer is a 709, the other a coupon that is sent again. The other customers get two coupons
#
# The figures are entities answered per second: one for each series of a request. An entity counts whether it is a new coupon, a coupon
# sent again, or the expected refusal, because the caller waits for each of them. Each figure is measured between two bare inserts and
# compared with their mean, because the speed of a machine changes by the minute. The kinds come in another order in each round. KINDS
# selects some of them. Prints a table; takes less than five minutes.
#
#   benches/kinds.sh target/release/coupon-issuer        SECONDS_EACH=2 ROUNDS=5 KINDS="first day"
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-2}
rounds=${ROUNDS:-5}
series=20000
organisations=300
customers=10000 # the known ones
# shellcheck source=start.sh
. "$here/start.sh"

declare -A meaning=(
    [first]="one per customer, a new customer"
    [three]="three per customer, a new customer"
    [known]="one per customer, who has it: refused with 709"
    [resend]="one per customer, who has it: sent again"
    [pool]="uploaded codes"
    [key]="no limits, with an \`Idempotency-Key\`"
    [orgs]="no limits, 300 organisations, each with its own till"
    [wide]="no limits, 20,000 series"
    [unlimited]="no limits"
    [day]="a mixture: two series, a key, one customer in five is known"
)
all=(first three known resend pool key orgs wide unlimited day)
read -ra kinds <<< "${KINDS:-${all[*]}}"
for kind in "${kinds[@]}"; do [ -n "${meaning[$kind]:-}" ] || fail "there is no kind $kind, but ${all[*]}"; done

measure() { # kind, seconds: sets answered, the entities per second
    case $1 in
        first) SERIES=1016 load "$2" ;;
        three) SERIES=1014 load "$2" ;;
        known) UNTALLIED=1 CUSTOMERS=$customers SERIES=1016 load "$2" ;;
        resend) UNTALLIED=1 CUSTOMERS=$customers SERIES=1015 load "$2" ;;
        pool) SERIES=1012 load "$2" ;;
        key) KEYED=1 SERIES=1001 load "$2" ;;
        orgs) CALLERS=$data/tills SERIES=1001 load "$2" ;;
        wide) SPREAD="$series 1000001" load "$2" ;;
        unlimited) SERIES=1001 load "$2" ;;
        day) KEYED=1 KNOWN=5 CUSTOMERS=$customers SERIES=1015,1016 load "$2" ;;
    esac
    answered=$rate
    [ "$1" != day ] || answered=$((2 * rate))
}

database kinds
add_many "$series" "$organisations"
serve "$port"
import_codes 1012 $((20000 * (seconds * rounds + 2))) # more than can be given out

# The known customers receive what they have. It can take several loads until each had its turn.
received=0
for _ in $(seq 60); do
    UNTALLIED=1 CUSTOMERS=$customers SERIES=1015,1016 load 1
    received=$(sql "$url" -c "select count(*) from coupon where series_id in (1015, 1016)")
    [ "$received" -lt $((2 * customers)) ] || break
done
[ "$received" = $((2 * customers)) ] || fail "$customers known customers have $received coupons of two series"
tally "$received"
# wrk sees only the status, which is 200 for a refusal, too. So the answer to a known customer is checked here. That known customers get
# nothing new is checked at the end, by the number of stored coupons.
known=$(sql "$url" -c "select max(customer_id) from coupon where series_id = 1016")
answer=$(curl -sSf -H "Authorization: $AUTHORIZATION" -H 'Content-Type: application/json' \
    -d '{"seriesIds":[1015,1016],"customer":{"id":"'"$known"'"}}' "http://$listen/v2/coupon/bulk/issue")
[[ $answer = *'"code":700,'*'"code":709,'* ]] || fail "a known customer is not answered with 700 and 709: $answer"

for kind in "${kinds[@]}"; do measure "$kind" 1; done
bare "$seconds"
for round in $(seq "$rounds"); do
    for kind in $(shuf -e "${kinds[@]}"); do
        before=$inserted
        measure "$kind" "$seconds"
        bare "$seconds"
        note kind.bare "$inserted"
        note "kind.$kind" "$answered"
        note "kind.$kind.to_bare" "$(ratio $((2 * answered)) $((before + inserted)))"
        echo "round $round: $kind $answered, bare insert before $before, after $inserted" >&2
    done
done
check_tally "$url"

echo "| kind of request | per second (median of $rounds) | ÷ bare insert (lowest, median, highest) |"
echo "|---|---|---|"
for kind in "${kinds[@]}"; do
    echo "| \`$kind\`: ${meaning[$kind]} | $(median "kind.$kind") | $(spread "kind.$kind.to_bare") |"
done
echo "| bare insert, pgbench, 16 clients | $(median kind.bare) | 1 |"
keep_figures
