#!/usr/bin/env bash
# The tests, in the environment of the quick start: unit, contract, configuration, then end to end with real engines.
# Arguments go to pytest, e.g.  bash scripts/test.sh -m "not e2e", or -m slow for what is left out otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."

bash scripts/install_cpu.sh
.venv/bin/python -m recipe.trd.tiny_world
echo "== tests (about 20 minutes on two cores; without the end-to-end ones about five)"
exec .venv/bin/python -m pytest -m "not slow" "$@"
