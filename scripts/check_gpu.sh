#!/usr/bin/env bash
# Check everything that needs a GPU, in at most eight minutes on one card; without a card it says what it did not run.
#   bash scripts/check_gpu.sh                                  all parts; results in outputs/check_gpu
#   bash scripts/check_gpu.sh --parts numerics divergence      some of them
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
exec "$PYTHON" benchmarks/check_gpu.py "$@"
