#!/usr/bin/env bash
# On-policy distillation (verl's own) on the tiny world: the twin of run_trd_tiny_cpu.sh with another method. At TRD's
# learning rate its policy gradient collapses.
set -euo pipefail
export METHOD=opd LR=${LR:-5e-4}
exec bash "$(dirname "$0")/run_trd_tiny_cpu.sh" "$@"
