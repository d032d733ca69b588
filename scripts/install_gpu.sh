#!/usr/bin/env bash
# Make .venv and install the GPU stack (Python 3.12, CUDA 13) from requirements/gpu.lock. Nothing is compiled. Does
# nothing when that is already done.
#   PYTHON       interpreter of version 3.12 (default: python3.12)
#   VENV         where to (default: .venv)
#   FLASH_ATTN   the optional package flash-attn: auto (default) tries a wheel of the wheelhouse of verl; a path or URL of
#                a wheel; or none. Without it the trainer takes PyTorch's own attention.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.12}
VENV=${VENV:-.venv}
FLASH_ATTN=${FLASH_ATTN:-auto}
WHEELHOUSE=https://verl-project.github.io/verl-wheelhouse/simple/
LOCK=requirements/gpu.lock
STAMP=$VENV/installed.sha256

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
    echo "Python 3.12 is needed ($PYTHON is not); set PYTHON=/path/to/python3.12" >&2
    exit 1
fi
if [ -f "$STAMP" ] && sha256sum --check --status "$STAMP"; then
    echo "== $VENV is up to date"
else
    echo "== installing into $VENV from $LOCK (about 250 packages, 10 GB)"
    rm -f "$STAMP"
    [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --require-hashes -r "$LOCK" \
        2>"$VENV/pip.log" || { grep -v '^WARNING' "$VENV/pip.log" | tail -n 5 >&2; exit 1; }
    "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable . \
        2>>"$VENV/pip.log"
    sha256sum "$LOCK" pyproject.toml >"$STAMP"
fi

if "$VENV/bin/python" -c 'import flash_attn' 2>/dev/null; then
    echo "== flash-attn is there"
elif [ "$FLASH_ATTN" != none ]; then
    WHAT=("$FLASH_ATTN")
    [ "$FLASH_ATTN" != auto ] || WHAT=(flash-attn --extra-index-url "$WHEELHOUSE")
    if "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --only-binary=:all: --retries 1 \
        --timeout 15 "${WHAT[@]}" 2>>"$VENV/pip.log" && "$VENV/bin/python" -c 'import flash_attn'; then
        echo "== flash-attn is installed"
    else
        echo "== no flash-attn: the trainer takes PyTorch's own attention (see $VENV/pip.log)"
        [ "$FLASH_ATTN" = auto ] || exit 1
    fi
fi
echo "== installed"
