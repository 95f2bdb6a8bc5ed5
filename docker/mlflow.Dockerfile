# The MLflow server, with the drivers of its database and its object store. Versions are the lock's.
FROM python:3.12.12-slim-bookworm

COPY requirements/cpu.lock /tmp/cpu.lock
RUN pip install --no-cache-dir --constraint /tmp/cpu.lock mlflow psycopg2-binary==2.9.13 boto3 \
    && rm /tmp/cpu.lock \
    && useradd --create-home --uid 1000 mlflow

ENV DO_NOT_TRACK=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PYTHONUNBUFFERED=1

USER mlflow
EXPOSE 5000
