#!/usr/bin/env bash
# The tests, in the environment of the quick start: unit, contract, configuration, then end to end with real engines.
# Arguments go to pytest, e.g.  bash scripts/test.sh -m "not e2e", or -m slow for what is left out otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."

bash scripts/install_cpu.sh
.venv/bin/python -m recipe.trd.tiny_world
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest -m "not slow" "$@"
fi
STATUS=0
echo "== tests without engines, two files at a time (about 4 minutes on two cores)"
.venv/bin/python -m pytest -m "not slow and not e2e" --numprocesses=2 --dist=loadfile || STATUS=$?
echo "== tests with real engines (about 15 minutes on two cores)"
.venv/bin/python -m pytest -m "e2e and not slow" || STATUS=$?
exit "$STATUS"
