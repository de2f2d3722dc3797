#!/usr/bin/env bash
# Runs the service tests through PgBouncer in session mode, then shows that transaction mode is refused. PgBouncer has its default
# settings, except for the numbers of connections and how long idle ones are kept: each test has a database of its own, and some start
# several replicas. Two tests are left out, because PgBouncer keeps sessions of Postgres that the tests expect to be new.
#
#   tests/pgbouncer.sh [filter]
set -euo pipefail
export PGCONNECT_TIMEOUT=5
cd "$(dirname "$0")/.."
cargo build
binary=${CARGO_TARGET_DIR:-target}/debug/coupon-issuer
pgbouncer=${PGBOUNCER:-$(command -v pgbouncer || echo /usr/sbin/pgbouncer)}
port=${PGBOUNCER_PORT:-16432}
data=$(mktemp -d "${TMPDIR:-/tmp}/coupon-issuer-pgbouncer.XXXXXX")
chmod 755 "$data"
started=()
stop() {
    [ "${#started[@]}" = 0 ] || kill "${started[@]}" 2> /dev/null || true
    wait || true
    rm -rf "$data"
}
trap stop EXIT
trap 'exit 130' INT TERM
fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

start_postgres() { # sets server, its URL
    rm -f "$data/demo.log"
    "$binary" demo --listen "127.0.0.1:$((port + 1))" --data-dir "$data/demo" > "$data/demo.log" 2>&1 &
    started=("$!")
    until grep -qs 'serving' "$data/demo.log"; do
        kill -0 "${started[0]}" 2> /dev/null || fail "no Postgres: $(cat "$data/demo.log")"
        sleep 0.1
    done
    server=$(grep -o "postgres://[^']*" "$data/demo.log" | head -n 1)
    psql=$(grep -o "[^ ]*psql '" "$data/demo.log" | head -n 1 | sed "s/ *'$//")
}
start_postgres
"$psql" -XqAt "$server" -c 'alter system set fsync = off'
kill "${started[0]}"
wait "${started[0]}" || true
start_postgres

host=$("$psql" -XqAt "$server" -c "select trim('\"' from split_part(setting, ',', 1)) from pg_settings where name = 'unix_socket_directories'")
postgres_port=$("$psql" -XqAt "$server" -c 'show port')
user=$("$psql" -XqAt "$server" -c 'select current_user')
pooled=postgres://$user@127.0.0.1:$port
pool() { # session or transaction: starts PgBouncer in this mode
    cat > "$data/pgbouncer.ini" << INI
[databases]
* = host=$host port=$postgres_port user=$user
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = any
pool_mode = $1
default_pool_size = 100
max_client_conn = 1000
server_idle_timeout = 1
INI
    local as=()
    [ "$(id -u)" != 0 ] || as=(setpriv --reuid "$(stat -c %u "$data/demo")" --clear-groups)
    ${as[@]+"${as[@]}"} "$pgbouncer" -q "$data/pgbouncer.ini" 2> "$data/pgbouncer.log" &
    pooler=$!
    started+=("$pooler")
    until "$psql" -XqAt "$pooled/postgres" -c 'select 1' > /dev/null 2>&1; do
        kill -0 "$pooler" 2> /dev/null || fail "no PgBouncer: $(cat "$data/pgbouncer.log")"
        sleep 0.1
    done
}
pool session
DATABASE_URL=$server POOLER_URL=$pooled/postgres cargo test --test service -- \
    --skip a_broken_session_is_replaced --skip while_the_database_is_read_only_requests_get_503 "$@"
kill "$pooler"
wait "$pooler" || true

pool transaction
export COUPON_ISSUER__HTTP__LISTEN=127.0.0.1:$((port + 2)) COUPON_ISSUER__METRICS__LISTEN=127.0.0.1:$((port + 3))
for command in migrate serve verify; do
    if DATABASE_URL=$pooled/coupon_issuer "$binary" "$command" > "$data/refused" 2>&1; then
        fail "$command runs through a pooler in transaction mode"
    fi
    grep -q 'a pooler in transaction mode' "$data/refused" || fail "$command: $(cat "$data/refused")"
done
echo "transaction mode is refused: $(tail -n 1 "$data/refused")"
