# Shared by the benchmarks, which set `here` and `binary` and source this file. It starts a private Postgres (fsync on, and settings
# as in production: see POSTGRES_SETTINGS below; if empty, Postgres' defaults) and defines the functions below. At the end, and on an
# error or a signal, it stops everything that it started and removes the data.
#
# Postgres and the services run under pin_service (a command such as `taskset -c 0`), the load under pin_load. BENCH_PORT is the
# first of a hundred ports (18080). If RESULTS names a directory, the figures are appended to RESULTS/figures.
export LC_ALL=C
port=${BENCH_PORT:-18080}
baseline=${BASELINE:-$(dirname "$binary")/examples/baseline}
baseline_connections=${BASELINE_CONNECTIONS:-16}
data=$(mktemp -d "${TMPDIR:-/tmp}/coupon-issuer-bench.XXXXXX")
chmod 755 "$data"
mkdir "$data/notes"
began=${EPOCHREALTIME/./}
started=()
stop() {
    [ "${#started[@]}" = 0 ] || kill "${started[@]}" 2> /dev/null || true
    # Postgres stops with the demo.
    wait || true
    rm -rf "$data"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
end() { # process: stops a process of `started`
    local process remaining=()
    for process in "${started[@]}"; do [ "$process" = "$1" ] || remaining+=("$process"); done
    started=("${remaining[@]}")
    kill "$1"
    # A process without a handler exits with 143.
    wait "$1" || [ $? = 143 ] || fail "a process failed: $(tail -n 5 "$data"/service.* 2> /dev/null)"
}
fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# --- Postgres: that of the demo, which gets no load.

start_postgres() { # sets server, a URL of it, and bin, where pgbench and psql are
    rm -f "$data/demo.log" # of the start before, or it would be taken for this one's
    ${pin_service:-} "$binary" demo --listen "127.0.0.1:$((port + 99))" --data-dir "$data/demo" > "$data/demo.log" 2>&1 &
    demo=$!
    started+=("$demo")
    until grep -qs 'serving' "$data/demo.log"; do
        kill -0 "$demo" 2> /dev/null || fail "no Postgres: $(cat "$data/demo.log" 2> /dev/null)"
        sleep 0.1
    done
    server=$(grep -o "postgres://[^']*" "$data/demo.log" | head -n 1)
    bin=$(grep -o "[^ ]*psql '" "$data/demo.log" | head -n 1 | sed "s/psql '//")
}
sql() { "${bin}psql" -XqAt -v ON_ERROR_STOP=1 "$@"; } # URL and options
start_postgres
# With the default max_wal_size, Postgres makes a checkpoint every few seconds of such a load, and after each it logs the whole page
# at the first change of a page.
settings=${POSTGRES_SETTINGS-shared_buffers=2GB max_wal_size=16GB checkpoint_timeout=30min}
if [ -n "$settings" ]; then
    for setting in $settings; do sql "$server" -c "alter system set ${setting%%=*} = '${setting#*=}'"; done
    end "$demo"
    start_postgres
fi
describe() { # prints the relevant settings and the machine in one line
    local name from
    echo -n "Postgres $(sql "$server" -c 'show server_version'):"
    for name in fsync synchronous_commit full_page_writes wal_compression shared_buffers max_wal_size checkpoint_timeout; do
        echo -n " $name $(sql "$server" -c "show $name"),"
    done
    echo -n " on $(nproc) cores that the load shares"
    from=${EPOCHREALTIME/./}
    dd if=/dev/zero of="$data/flushed" bs=8k count=500 oflag=dsync 2> /dev/null
    awk -v us=$((${EPOCHREALTIME/./} - from)) 'BEGIN { printf "; a write of 8 KiB takes %.2f ms.\n", us / 500000 }'
    rm "$data/flushed"
}

database() { # name: creates a database with the demo's organisation and the series of series.toml; sets url
    sql "$server" -c "create database $1"
    url=${server/\/coupon_issuer?/\/$1?}
    DATABASE_URL=$url "$binary" migrate > /dev/null
    DATABASE_URL=$url "$binary" apply "$here/../config/demo.toml" > /dev/null
    DATABASE_URL=$url "$binary" apply "$here/series.toml" > /dev/null
    # Above all ids that the service leases.
    sql "$url" -c "create sequence bare_insert_id start 1000000000000"
}

# --- The measured services, on the database of url.

listen=127.0.0.1:$port
baseline_listen=127.0.0.1:$((port + 1))
serve() { # port: starts the service with default settings except the ports; sets service, its process
    DATABASE_URL=$url COUPON_ISSUER__HTTP__LISTEN=127.0.0.1:$1 COUPON_ISSUER__METRICS__LISTEN=127.0.0.1:$(($1 + 50)) \
        COUPON_ISSUER__HTTP__DRAIN_SECONDS=${DRAIN_SECONDS:-0} ${pin_service:-} "$binary" serve > "$data/service.$1" 2>&1 &
    service=$!
    started+=("$service")
    ready "$1" "$service" "$data/service.$1"
    know_caller "127.0.0.1:$1"
}
serve_baseline() { # starts the baseline (baseline.rs); sets baseline_service
    [ -x "$baseline" ] || fail "$baseline is missing: cargo build --release --example baseline"
    DATABASE_URL=$url ${pin_service:-} "$baseline" "$baseline_listen" "$baseline_connections" > "$data/baseline" 2>&1 &
    baseline_service=$!
    started+=("$baseline_service")
    ready "$((port + 1))" "$baseline_service" "$data/baseline"
    know_caller "$baseline_listen"
}
ready() { # port, process, log
    for _ in $(seq 600); do
        curl -sf -o /dev/null "http://127.0.0.1:$1/readyz" && return
        kill -0 "$2" 2> /dev/null || break
        sleep 0.05
    done
    fail "not ready: $(tail -n 20 "$3")"
}

know_caller() { # address: has the till's password checked, which is slow and then cached; no such series, so no coupon
    curl -sSf -o /dev/null -H "Authorization: $AUTHORIZATION" -H 'Content-Type: application/json' \
        -d '{"seriesIds":[999],"customer":{"id":"0"}}' "http://$1/v2/coupon/bulk/issue"
}

# --- Load.

# store.server : md5(server123), as a till sends it
export AUTHORIZATION="Basic c3RvcmUuc2VydmVyOjhhMTZhNmI3MDUwNWViMWYxZmY3Y2RjMGNkNTU1OWE3"

fresh() { echo $((${EPOCHREALTIME/./} - began)); } # microseconds since the start: above all customer numbers so far

# Runs wrk with issue.lua over CONNECTIONS (128) against TO (the service). Sets rate, in requests per second; p50 and p99, in
# microseconds; requests. Any answer other than 200 ends the benchmark.
load() { # seconds
    local connections=${CONNECTIONS:-128} micros failures ids stored in_flight
    FIRST=$(fresh) ${pin_load:-} wrk -t1 -c"$connections" -d"$1s" --timeout 20s -s "$here/issue.lua" \
        "http://${TO:-$listen}" > "$data/wrk" || fail "wrk: $(cat "$data/wrk")"
    read -r requests micros failures p50 p99 < <(tail -n 1 "$data/wrk")
    [ "$failures" = 0 ] && [ "$requests" -gt 0 ] || fail "$failures of $requests requests failed: $(cat "$data/wrk"; complaints)"
    rate=$((requests * 1000000 / micros))
    ids=${SERIES:-}
    ids=${ids//[^,]/}
    # Requests that were not answered by the end may be stored as well.
    stored=$requests
    in_flight=$connections
    # With KNOWN, every KNOWNth of the requests sent is for a customer who has received everything before. It stores nothing. How many
    # were sent is certain only up to those in flight, so the bounds have room for one more.
    if [ -n "${KNOWN:-}" ]; then
        stored=$((requests - (requests + connections) / KNOWN - 1))
        in_flight=$((connections + 1))
    fi
    [ -n "${UNTALLIED:-}" ] || tally $((stored * (${#ids} + 1))) $((in_flight * (${#ids} + 1)))
    settle
}
complaints() { # the log lines of the services, without those of successful requests
    sleep 0.3
    grep -hv '"status":200' "$data"/service.* | tail -n 20
}
warm() { CONNECTIONS=8 load "${1:-1}"; } # [seconds]
tally() { echo "$1 ${2:-0}" >> "$data/tally"; } # coupons answered, coupons that may be stored in addition
settle() { # waits until Postgres is idle again
    for _ in $(seq 100); do
        sleep 0.1
        [ "$(sql "$server" -c "select count(*) from pg_stat_activity
            where backend_type = 'client backend' and state <> 'idle' and pid <> pg_backend_pid()
              and application_name <> 'bystander'")" = 0 ] && return
    done
    fail "work goes on after the load has ended"
}
check_tally() { # URLs: checks that all answered coupons are stored there, and no others
    local stored=0 database
    for database; do
        stored=$((stored + $(sql "$database" -c "select count(*) from coupon
            where (org_id, origin_id) not in (select org_id, origin_id from origin where till_id in ('pgbench', 'stored'))")))
    done
    awk -v stored="$stored" '{ answered += $1; more += $2 } END {
        if (stored < answered || stored > answered + more) {
            printf "%d coupons were answered (and %d may have been on their way), but %d are stored\n", answered, more, stored
            exit 1
        }
        printf "%d coupons answered, %d stored\n", answered, stored
    }' "$data/tally" >&2 || fail "the load and the database differ"
}
bare() { # seconds: sets inserted, the rows per second that pgbench inserts, one per transaction, on the database of url
    local origin
    origin=$(sql "$url" -c "select origin_1(1, 10, 'INSTORE', 'pgbench', null)")
    "${bin}pgbench" -n -c16 -j2 -T"$1" -M prepared -D origin="$origin" -f "$here/bare_insert.sql" "$url" > "$data/pgbench" 2>&1 \
        || fail "pgbench: $(cat "$data/pgbench")"
    inserted=$(awk '/^tps/ { printf "%.0f", $3 }' "$data/pgbench")
}
command -v "${bin}pgbench" > /dev/null || fail "pgbench is missing: install Postgres' contrib package"

# k6 with load.js: RATE requests per second. Sets answered, turned_away, failed, unsent; p50, p99 and longest, in milliseconds, of the
# answered requests.
k6_load() { # seconds
    FIRST=$(fresh) SECONDS_LONG=$1 TO=${TO:-$listen} K6_NO_USAGE_REPORT=true \
        ${pin_load:-} "$k6" run --quiet --log-output=none "$here/load.js" > "$data/k6" || fail "k6: $(cat "$data/k6")"
    read -r answered turned_away failed unsent p50 p99 longest < "$data/k6"
}
find_k6() { # sets k6: $K6, the one on the PATH, or the one of `make k6`
    k6=${K6:-$(command -v k6 || echo "$here/../target/k6/bin/k6")}
    command -v "$k6" > /dev/null || fail "k6 is missing: make k6, or K6=path/to/k6"
}

# --- Figures: each round notes one under a name.

note() { echo "$2" >> "$data/notes/$1"; } # name, figure
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a / b }'; }
# The lowest, the median and the highest figure of this name.
three() { sort -g "$data/notes/$1" | awk '{ v[NR] = $1 } END { print v[1], v[int((NR + 1) / 2)], v[NR] }'; }
median() { three "$1" | cut -d ' ' -f 2; }
spread() { three "$1" | awk '{ printf "%.2f, **%.2f**, %.2f", $1, $2, $3 }'; }
keep_figures() { # at the end, for the chart: name, lowest, median, highest
    [ -n "${RESULTS:-}" ] || return 0
    for name in "$data"/notes/*; do
        name=${name##*/}
        echo "$name $(three "$name")"
    done >> "$RESULTS/figures"
}

# --- Used by some benchmarks.

import_codes() { # series, number of codes, first number (0): into the database of url
    awk -v n="$2" -v from="${3:-0}" 'BEGIN { for (i = from; i < from + n; i++) printf "C%09d\n", i }' > "$data/codes"
    DATABASE_URL=$url "$binary" codes import --org 1 --series "$1" "$data/codes" > /dev/null
}
add_many() { # series, organisations: adds them to the database of url by many.sql, and writes the tills' credentials to $data/tills
    sql "$url" -v series="$1" -v organisations="$2" -f "$here/many.sql" > /dev/null
    sql "$url" -c "select 'Basic ' || encode(convert_to(till_id || ':8a16a6b70505eb1f1ff7cdc0cd5559a7', 'UTF8'), 'base64')
                     from till where org_id > 1000" > "$data/tills"
}
access_token() {
    curl -sSf -u crm:crm-secret -d grant_type=client_credentials "http://$listen/oauth/token" \
        | sed 's/.*"access_token":"\([^"]*\)".*/\1/'
}
