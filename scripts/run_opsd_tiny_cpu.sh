#!/usr/bin/env bash
# Self-distillation on the student's own solutions (OPSD) on the tiny world: the twin of run_trd_opsd_tiny_cpu.sh with
# another method. With the preset's clip its student unlearns: docs/reproduce.md says why, and why the temperature is low.
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=2
#SBATCH --time=01:00:00 --signal=B:USR1@180 --requeue --open-mode=append
set -euo pipefail
SCRIPTS=$(dirname "$0")
[ -d "$SCRIPTS/lib" ] || SCRIPTS=${SLURM_SUBMIT_DIR:-.}/scripts
export METHOD=opsd MODEL=${MODEL:-tiny_self} LR=${LR:-2e-3} TOTAL_STEPS=${TOTAL_STEPS:-240}
exec bash "$SCRIPTS/run_trd_tiny_cpu.sh" \
    actor_rollout_ref.rollout.temperature=0.1 trd.objective.entry_clip=null "$@"
