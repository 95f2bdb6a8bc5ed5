#!/bin/sh
# A worker container's life: make the inputs of the demo deployment, the work pool if there is none, apply the
# deployments, then run those deployments and no others.
set -eu
cd "$(dirname "$0")/.."

python -c 'from deployments import demo; demo.make_inputs(0)'
python -c 'import os; from deployments import pool; pool.make(os.environ["PREFECT_API_URL"])'
python -m prefect --no-prompt deploy --all --prefect-file deployments/prefect.yaml
exec python -m deployments.worker
