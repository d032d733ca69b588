#!/usr/bin/env bash
# TRD without an external teacher (self-distillation with the reference solution): the twin of run_trd_qwen7b.sh with
# another method.
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --mem=0
#SBATCH --time=24:00:00 --signal=B:USR1@1200 --requeue --open-mode=append
set -euo pipefail
# SLURM runs a copy of this file, which does not lie beside its library.
SCRIPTS=$(dirname "$0")
[ -d "$SCRIPTS/lib" ] || SCRIPTS=${SLURM_SUBMIT_DIR:-.}/scripts

METHOD=${METHOD:-trd_opsd}
MODEL=${MODEL:-qwen2_5_7b}
# Qwen2.5 was made for 32768 tokens, which hold the refine context of so long a response and the rewrite.
MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-8192}
LR=${LR:-1e-6}
source "$SCRIPTS/lib/math.sh"
