#!/usr/bin/env bash
# GRPO (verl's own) on the tiny world: the twin of run_trd_tiny_cpu.sh with another method and its group size.
set -euo pipefail
METHOD=grpo ROLLOUT_N=${ROLLOUT_N:-8} LR=${LR:-2e-4} exec bash "$(dirname "$0")/run_trd_tiny_cpu.sh" "$@"
