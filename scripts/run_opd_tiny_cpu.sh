#!/usr/bin/env bash
# On-policy distillation (verl's own) on the tiny world: the twin of run_trd_tiny_cpu.sh with another method. At TRD's
# learning rate its policy gradient collapses.
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=2
#SBATCH --time=01:00:00 --signal=B:USR1@180 --requeue --open-mode=append
set -euo pipefail
SCRIPTS=$(dirname "$0")
[ -d "$SCRIPTS/lib" ] || SCRIPTS=${SLURM_SUBMIT_DIR:-.}/scripts
export METHOD=opd LR=${LR:-5e-4}
exec bash "$SCRIPTS/run_trd_tiny_cpu.sh" "$@"
