#!/usr/bin/env bash
# Check everything that needs a GPU, on one card; without a card it says what it did not run. Most of the time goes into
# starting engines; leave parts out where it is short.
#   bash scripts/check_gpu.sh                                  all parts; results in outputs/check_gpu
#   bash scripts/check_gpu.sh --parts numerics divergence      some of them
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
exec "$PYTHON" benchmarks/check_gpu.py "$@"
