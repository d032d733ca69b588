#!/usr/bin/env bash
# TRD on the tiny world, on machines without an accelerator: the student samples y_o, the teacher rewrites it into y_r,
# the student learns the teacher's distribution on y_r. Any key of the configuration can follow as key=value.
#   bash scripts/run_trd_tiny_cpu.sh trainer.total_training_steps=20
#   sbatch --nodes=2 scripts/run_trd_tiny_cpu.sh
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=2
#SBATCH --time=01:00:00 --signal=B:USR1@180 --requeue --open-mode=append
set -euo pipefail
# SLURM runs a copy of this file, which does not lie beside its library.
SCRIPTS=$(dirname "$0")
[ -d "$SCRIPTS/lib" ] || SCRIPTS=${SLURM_SUBMIT_DIR:-.}/scripts
source "$SCRIPTS/lib/launch.sh"

METHOD=${METHOD:-trd_opd}
MODEL=${MODEL:-tiny}
SEED=${SEED:-1}
TOTAL_STEPS=${TOTAL_STEPS:-120}
TRAIN_BATCH_SIZE=${TRAIN_BATCH_SIZE:-64}
ROLLOUT_N=${ROLLOUT_N:-1}
LR=${LR:-3e-3}
TEST_FREQ=${TEST_FREQ:-40}
SAVE_FREQ=${SAVE_FREQ:--1}
RUN_DIR=${RUN_DIR:-outputs/${METHOD}-tiny-seed${SEED}}

export VERL_PLATFORM=cpu
# Memory for keys and values of each vLLM engine, GiB; two engines share the cores.
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-nobind}
export TOKENIZERS_PARALLELISM=false
# Logical, for Ray on a node of a job. On several nodes each has one accelerator, so that student and teacher part.
RAY_NUM_CPUS=${RAY_NUM_CPUS:-32}
RAY_NUM_GPUS=${RAY_NUM_GPUS:-$((${SLURM_JOB_NUM_NODES:-1} > 1 ? 1 : 2))}
export RAY_NUM_CPUS RAY_NUM_GPUS

DATA=(
    data=tiny_world
    data.train_batch_size="$TRAIN_BATCH_SIZE"
    data.seed="$SEED"
)
TRAINING=(
    model="$MODEL"
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
if [ "$MODEL" = tiny_self ] && [ ! -f data/tiny_world/self_student.json ] && [ "${DRY_RUN:-0}" != 1 ]; then
    "$PYTHON" -m recipe.trd.tiny_world with_self_student=true
fi
launch method="$METHOD" "${DATA[@]}" "${TRAINING[@]}" "${ROLLOUT[@]}" "${TRAINER[@]}" "$@"
