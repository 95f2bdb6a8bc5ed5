#!/bin/sh
# What a worker container runs: it makes the inputs of the demo deployment, creates the work pool if there is none,
# applies the deployments, then runs those deployments and no others.
set -eu
cd "$(dirname "$0")/.."

python -c 'from deployments import demo; demo.make_inputs(0)'
python -c 'import os; from deployments import pool; pool.get_or_create(os.environ["PREFECT_API_URL"])'
python -m prefect --no-prompt deploy --all --prefect-file deployments/prefect.yaml
exec python -m deployments.worker
