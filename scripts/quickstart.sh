#!/usr/bin/env bash
# From nothing to a student trained with TRD, on two CPU cores: install, make the tiny world, train, print the summary.
# Safe to run again: what is done is not done twice, and a trained run is kept under previous/ in its folder.
set -euo pipefail
cd "$(dirname "$0")/.."

STARTED=$SECONDS

echo "== 1/3 install (scripts/install_cpu.sh)"
bash scripts/install_cpu.sh
INSTALLED=$SECONDS
echo "== 2/3 tiny world: problems, a teacher and a student, trained from scratch"
.venv/bin/python -m recipe.trd.tiny_world
BUILT=$SECONDS
echo "== 3/3 train with TRD (scripts/run_trd_tiny_cpu.sh)"
RUN_DIR=${RUN_DIR:-outputs/quickstart} TEST_FREQ=${TEST_FREQ:-120} bash scripts/run_trd_tiny_cpu.sh "$@"

echo "== install $((INSTALLED - STARTED)) s, world $((BUILT - INSTALLED)) s, training with its start $((SECONDS - BUILT)) s," \
    "together $((SECONDS - STARTED)) s"
