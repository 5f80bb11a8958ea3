#!/bin/sh
# Makes the gateways' role and database; the schema inside is made by the first gateway. Runs once, on an empty volume.
set -eu

# The password is the role's alone: the superuser is left with none, and is reached only from inside the container.
# pg_read_all_stats lets the role see whether standbys are connected, which matters if the policy asks for any.
psql --no-psqlrc --set ON_ERROR_STOP=1 --set password="$POSTGRES_PASSWORD" \
    --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
CREATE ROLE weir LOGIN PASSWORD :'password';
GRANT pg_read_all_stats TO weir;
CREATE DATABASE weir OWNER weir;
REVOKE ALL ON DATABASE weir FROM PUBLIC;
ALTER ROLE CURRENT_USER PASSWORD NULL;
SQL
