#!/usr/bin/env bash
# TRD on the tiny world, on a machine without an accelerator: the student samples y_o, the teacher rewrites it into y_r,
# the student learns the teacher's distribution on y_r. Any key of the configuration can follow as key=value.
#   bash scripts/run_trd_tiny_cpu.sh trainer.total_training_steps=20
set -euo pipefail
cd "$(dirname "$0")/.."

METHOD=${METHOD:-trd_opd}
SEED=${SEED:-1}
TOTAL_STEPS=${TOTAL_STEPS:-120}
TRAIN_BATCH_SIZE=${TRAIN_BATCH_SIZE:-64}
ROLLOUT_N=${ROLLOUT_N:-1}
LR=${LR:-3e-3}
TEST_FREQ=${TEST_FREQ:-40}
SAVE_FREQ=${SAVE_FREQ:--1}
RUN_DIR=${RUN_DIR:-outputs/${METHOD}-tiny-seed${SEED}}
PYTHON=${PYTHON:-.venv/bin/python}

export VERL_PLATFORM=cpu
# Memory for keys and values of each vLLM engine, GiB; two engines share the cores.
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-nobind}
export TOKENIZERS_PARALLELISM=false

DATA=(
    data=tiny_world
    data.train_batch_size="$TRAIN_BATCH_SIZE"
    data.seed="$SEED"
)
MODEL=(
    model=tiny
    actor_rollout_ref.actor.optim.lr="$LR"
    actor_rollout_ref.actor.optim.lr_warmup_steps=5
    actor_rollout_ref.actor.optim.lr_scheduler_type=cosine
    actor_rollout_ref.actor.optim.weight_decay=0.0
    actor_rollout_ref.actor.optim.betas="[0.9,0.98]"
    actor_rollout_ref.actor.fsdp_config.seed="$SEED"
)
ROLLOUT=(
    actor_rollout_ref.rollout.n="$ROLLOUT_N"
    actor_rollout_ref.rollout.seed="$SEED"
)
TRAINER=(
    cluster=cpu
    trainer.total_training_steps="$TOTAL_STEPS"
    trainer.test_freq="$TEST_FREQ"
    trainer.save_freq="$SAVE_FREQ"
    trainer.default_local_dir="$RUN_DIR"
)

[ -f data/tiny_world/world.json ] || "$PYTHON" -m recipe.trd.tiny_world
exec "$PYTHON" -m recipe.trd.main method="$METHOD" "${DATA[@]}" "${MODEL[@]}" "${ROLLOUT[@]}" "${TRAINER[@]}" "$@"
