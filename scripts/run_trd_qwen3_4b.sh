#!/usr/bin/env bash
# TRD in the setting of its paper (arXiv 2606.08432): student Qwen3-4B-Instruct-2507, teacher Qwen3-8B, eight GPUs of 80 GB.
# Unlike the release: y_o is sampled anew in every step, and all parameters are trained, not LoRA of rank 64; for that,
# put experiment=lora behind the script's name.
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --mem=0
#SBATCH --time=24:00:00 --signal=B:USR1@1200 --requeue --open-mode=append
set -euo pipefail
# SLURM runs a copy of this file, which does not lie beside its library.
SCRIPTS=$(dirname "$0")
[ -d "$SCRIPTS/lib" ] || SCRIPTS=${SLURM_SUBMIT_DIR:-.}/scripts

METHOD=${METHOD:-trd_opd}
MODEL=${MODEL:-qwen3_4b}
# The sampling of the paper's release, for y_o and y_r.
TEMPERATURE=${TEMPERATURE:-0.6}
TOP_P=${TOP_P:-0.95}
TOP_K=${TOP_K:-20}
source "$SCRIPTS/lib/math.sh"
