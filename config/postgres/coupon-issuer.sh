#!/bin/sh
# The postgres image runs this once, when its volume is new. psql reads the password itself: as an argument, the list of processes would
# show it.
psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\set password `cat /run/secrets/coupon-issuer-password`
create role coupon_issuer login password :'password';
create database coupon_issuer owner coupon_issuer;
SQL
