#!/bin/sh
# Run by the postgres image once, when its volume is new: the database and the role that owns it, which is no superuser. The
# password is read inside psql, so that no list of processes shows it.
psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\set password `cat /run/secrets/coupon-issuer-password`
create role coupon_issuer login password :'password';
create database coupon_issuer owner coupon_issuer;
SQL
