#!/usr/bin/env bash
# GRPO (verl's own) on the tiny world: the twin of run_trd_tiny_cpu.sh with another method. Groups of 8 for 16 prompts are
# twice TRD's samples a step. The learning rate is the only one that was tried.
set -euo pipefail
export METHOD=grpo ROLLOUT_N=${ROLLOUT_N:-8} TRAIN_BATCH_SIZE=${TRAIN_BATCH_SIZE:-16} LR=${LR:-2e-4}
exec bash "$(dirname "$0")/run_trd_tiny_cpu.sh" "$@"
