#!/bin/sh
# The job `secrets` of docker-compose.yml. It runs at each start of Compose: it must keep existing passwords, and complete a run that was
# interrupted.
set -eu
umask 077

random() { head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n'; }

# Writes standard input to a file that only one user may read. The rename makes it atomic.
put() { # file, user id
    rm -f "$1.new"
    cat > "$1.new"
    chmod 400 "$1.new"
    chown "$2" "$1.new"
    mv "$1.new" "$1"
}

postgres=$(id -u postgres) # this container runs the postgres image
[ -s /secrets/postgres/postgres-password ] || random | put /secrets/postgres/postgres-password "$postgres"
[ -s /secrets/grafana/admin-password ] || random | put /secrets/grafana/admin-password 472
# The service's password is in two files. If one is missing (an interrupted run, a removed volume), the URL decides, because the service has
# used it. Without a URL, generate a new password.
if [ ! -s /secrets/service/database-url ] || [ ! -s /secrets/postgres/coupon-issuer-password ]; then
    password=$(sed -n 's,^postgres://[^:]*:\([^@]*\)@.*,\1,p' /secrets/service/database-url 2> /dev/null || true)
    [ -n "$password" ] || password=$(random)
    printf '%s' "$password" | put /secrets/postgres/coupon-issuer-password "$postgres"
    printf 'postgres://coupon_issuer:%s@postgres:5432/coupon_issuer' "$password" | put /secrets/service/database-url 65532
fi
