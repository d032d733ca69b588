#!/usr/bin/env bash
# TRD without an external teacher (self-distillation with the reference solution) on the tiny world: the twin of
# run_trd_tiny_cpu.sh with another method, and with a student that can read a reference.
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=2
#SBATCH --time=01:00:00 --signal=B:USR1@180 --requeue --open-mode=append
set -euo pipefail
SCRIPTS=$(dirname "$0")
[ -d "$SCRIPTS/lib" ] || SCRIPTS=${SLURM_SUBMIT_DIR:-.}/scripts
export METHOD=${METHOD:-trd_opsd} MODEL=${MODEL:-tiny_self}
exec bash "$SCRIPTS/run_trd_tiny_cpu.sh" "$@"
