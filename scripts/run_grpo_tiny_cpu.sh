#!/usr/bin/env bash
# GRPO (verl's own) on the tiny world: the twin of run_trd_tiny_cpu.sh with another method. Groups of 8 for 16 prompts are
# twice TRD's samples a step. The learning rate is the only one that was tried.
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=2
#SBATCH --time=01:00:00 --signal=B:USR1@180 --requeue --open-mode=append
set -euo pipefail
SCRIPTS=$(dirname "$0")
[ -d "$SCRIPTS/lib" ] || SCRIPTS=${SLURM_SUBMIT_DIR:-.}/scripts
export METHOD=grpo ROLLOUT_N=${ROLLOUT_N:-8} TRAIN_BATCH_SIZE=${TRAIN_BATCH_SIZE:-16} LR=${LR:-2e-4}
exec bash "$SCRIPTS/run_trd_tiny_cpu.sh" "$@"
