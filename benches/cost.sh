#!/usr/bin/env bash
# Resources per coupon: CPU time of the service and of Postgres, bytes of write-ahead log and table. Resources of the service: memory
# idle and under the load of a thousand connections, and start-up time. Prints two tables; takes about a minute. Reads /proc, so it runs
# on Linux only.
#
#   benches/cost.sh target/release/coupon-issuer        SECONDS_EACH=3 ROUNDS=3
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-3}
rounds=${ROUNDS:-3}
# shellcheck source=start.sh
. "$here/start.sh"
ticks=$(getconf CLK_TCK)
postmaster=$(sql "$server" -c "select split_part(pg_read_file('postmaster.pid'), E'\n', 1)")
used() { # process: its CPU ticks
    sed 's/.*) //' "/proc/$1/stat" 2> /dev/null | awk '{ print $12 + $13 }'
}
used_by_postgres() { # CPU ticks of the server and its child processes, including those that have ended
    local child
    {
        sed 's/.*) //' "/proc/$postmaster/stat" | awk '{ print $12 + $13 + $14 + $15 }'
        for child in $(cat "/proc/$postmaster/task/$postmaster/children"); do used "$child" || true; done
    } | awk '{ sum += $1 } END { print sum }'
}

resident() { awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$service/status"; }

# Start-up: from the start of the process to the first 200 of /readyz. Asks with bash itself, because starting curl takes longer.
database start
start_up() {
    local answer from=${EPOCHREALTIME/./}
    DATABASE_URL=$url COUPON_ISSUER__HTTP__LISTEN=$listen COUPON_ISSUER__METRICS__LISTEN='' COUPON_ISSUER__HTTP__DRAIN_SECONDS=0 \
        ${pin_service:-} "$binary" serve > "$data/service.start" 2>&1 &
    service=$!
    started+=("$service")
    while kill -0 "$service" 2> /dev/null; do
        answer=
        if { exec 3<> "/dev/tcp/127.0.0.1/$port"; } 2> /dev/null; then
            printf 'GET /readyz HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$listen" >&3
            read -r answer <&3 || true
            exec 3>&-
        fi
        [[ $answer = *' 200 '* ]] && break
        read -rt 0.001 -u 4 || true # a pause
    done
    [[ $answer = *' 200 '* ]] || fail "it does not start: $(cat "$data/service.start")"
    note cost.start $(((${EPOCHREALTIME/./} - from) / 1000))
    note cost.memory.idle "$(resident)"
    end "$service"
}
mkfifo "$data/silence"
exec 4<> "$data/silence"
for _ in $(seq $((3 * rounds))); do start_up; done

# Per coupon: each kind has a database of its own.
whats=(service1 service10 keyed1 baseline1)
declare -A at name=([service1]="this service, 1 series a request" [service10]="this service, 10 series"
    [keyed1]="this service, 1 series with an Idempotency-Key" [baseline1]="the baseline, 1 series")
for what in "${whats[@]}"; do
    database "$what"
    at[$what]=$url
done
use() { # what: starts the service that issues it
    url=${at[$1]}
    case $1 in
        baseline*) serve_baseline; process=$baseline_service; to=$baseline_listen ;;
        *) serve "$port"; process=$service; to=$listen ;;
    esac
    series=${1//[a-z]/}
    unset KEYED
    [[ $1 != keyed* ]] || export KEYED=1
    TO=$to ids=$(seq 1001 $((1000 + series)) | paste -sd, -)
    export TO SERIES=$ids
}
for round in $(seq "$rounds"); do
    for what in $(shuf -e "${whats[@]}"); do
        use "$what"
        warm
        before=("$(used "$process")" "$(used_by_postgres)" "$(sql "$server" -c 'select pg_current_wal_lsn()')")
        load "$seconds"
        after=("$(used "$process")" "$(used_by_postgres)")
        written=$(sql "$server" -c "select pg_current_wal_lsn() - '${before[2]}'")
        coupons=$((requests * series))
        note "cost.$what.cpu" "$(ratio $((1000000 * (after[0] - before[0]))) $((coupons * ticks)))"
        note "cost.$what.cpu_postgres" "$(ratio $((1000000 * (after[1] - before[1]))) $((coupons * ticks)))"
        note "cost.$what.wal" $((written / coupons))
        echo "round $round: ${name[$what]}: $rate requests/s" >&2
        end "$process"
    done
done
for what in "${whats[@]}"; do
    read -r heap indexes < <(sql "${at[$what]}" -F ' ' \
        -c "select pg_table_size('coupon') / count(*), pg_indexes_size('coupon') / count(*) from coupon")
    note "cost.$what.heap" "$heap"
    note "cost.$what.indexes" "$indexes"
    note "cost.$what.stored" $((heap + indexes))
done

# Memory under load: the highest sample.
unset KEYED
ulimit -n "$(ulimit -Hn)"
database memory
serve "$port"
TO=$listen SERIES=1001 warm
TO=$listen SERIES=1001 CONNECTIONS=1000 load $((seconds + 5)) &
loading=$!
sleep 1
while kill -0 "$loading" 2> /dev/null; do
    resident >> "$data/resident"
    echo >> "$data/resident"
    sleep 0.2
done
wait "$loading" || fail "the load of a thousand connections failed"
note cost.memory.thousand "$(sort -g "$data/resident" | tail -n 1)"
check_tally "${at[@]}" "$url"

echo "| per coupon (median of $rounds) | CPU of the service (s per million) | CPU of Postgres (s per million) | write-ahead log (bytes) | table (bytes) | indexes (bytes) |"
echo "|---|---|---|---|---|---|"
for what in "${whats[@]}"; do
    c=cost.$what
    printf '| %s | %.1f | %.1f ' "${name[$what]}" "$(median "$c.cpu")" "$(median "$c.cpu_postgres")"
    echo "| $(median "$c.wal") | $(median "$c.heap") | $(median "$c.indexes") |"
done
echo
echo "| resources of the service | |"
echo "|---|---|"
echo "| memory after the start | $(median cost.memory.idle) MiB |"
echo "| memory with a thousand connections under load | $(median cost.memory.thousand) MiB |"
echo "| start-up until ready | $(median cost.start) ms |"
keep_figures
