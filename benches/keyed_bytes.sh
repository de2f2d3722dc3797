#!/usr/bin/env bash
# Bytes on disk of a keyed coupon with the record of its request: requests for two series, one of which the customer already has, so its
# coupon is resent. Prints a table; takes half a minute.
#
#   benches/keyed_bytes.sh target/release/coupon-issuer        SECONDS_EACH=5
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$1
seconds=${SECONDS_EACH:-5}
# shellcheck source=start.sh
. "$here/start.sh"
database keyed_bytes
serve "$port"

# The same customers twice: the first load issues the coupons that the second one resends. It must reach more customers.
first=$(fresh)
fresh() { echo "$first"; }
SERIES=1015 load $((3 * seconds))
tables=(coupon keyed_request)
sizes() { # a line for each table: bytes of it and of its indexes
    local table
    for table in "${tables[@]}"; do sql "$url" -F ' ' -c "select '$table', pg_table_size('$table'), pg_indexes_size('$table')"; done
}
count() { sql "$url" -c 'select count(*) from coupon'; }
before=$(count)
sizes > "$data/before"
KEYED=1 SERIES=1001,1015 UNTALLIED=1 load "$seconds"
issued=$(($(count) - before))
resent=$(sql "$url" -c "select count(*) from keyed_request where answers like '1001 1015=%'")
[ "$issued" = "$resent" ] || fail "$issued coupons, of which $resent belong to a request whose other series was sent again"

echo "| per coupon of $issued | table (bytes) | indexes (bytes) |"
echo "|---|---|---|"
sizes | paste -d ' ' "$data/before" - | awk -v n="$issued" '
    { table = ($5 - $2) / n; indexes = ($6 - $3) / n; all += table + indexes
      printf "| %s | %.1f | %.1f |\n", $1, table, indexes }
    END { printf "| together | %.1f | |\n", all }' | tee "$data/table"
note keyed.stored "$(awk '/together/ { print $4 }' "$data/table")"
keep_figures
