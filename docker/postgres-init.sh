#!/bin/sh
# Runs once, on an empty data volume: a role and a database for each of Prefect and MLflow.
set -eu

for name in prefect mlflow; do
    case $name in
    prefect) password=$PREFECT_DB_PASSWORD ;;
    mlflow) password=$MLFLOW_DB_PASSWORD ;;
    esac
    psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
        --set name="$name" --set password="$password" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
SQL
done
