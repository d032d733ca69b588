#!/usr/bin/env bash
# On-policy distillation (verl's own) on the tiny world: the twin of run_trd_tiny_cpu.sh with another method.
set -euo pipefail
METHOD=opd exec bash "$(dirname "$0")/run_trd_tiny_cpu.sh" "$@"
