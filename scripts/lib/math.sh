# Sourced by the run scripts for mathematics on GPUs with METHOD and MODEL set: the settings that all of them share, and
# the start. Any key of the configuration can follow the script's name as key=value, and wins.
# shellcheck shell=bash
source "$SCRIPTS/lib/launch.sh"

METHOD=${METHOD:?}
MODEL=${MODEL:?}
DATA=${DATA:-deepscaler}
SEED=${SEED:-1}
# The paper's batch; 315 steps of it are its one epoch of DeepScaleR.
TRAIN_BATCH_SIZE=${TRAIN_BATCH_SIZE:-128}
TOTAL_STEPS=${TOTAL_STEPS:-315}
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-2048}
MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-16384}
# Problem, y_o, a reference solution of 4096 tokens for the teachers that see one, and the instructions around them.
MAX_REFINE_LENGTH=${MAX_REFINE_LENGTH:-$((MAX_PROMPT_LENGTH + MAX_RESPONSE_LENGTH + 4096 + 1024))}
LR=${LR:-5e-6}
# Sampling of y_o and of y_r.
TEMPERATURE=${TEMPERATURE:-1.0}
TOP_P=${TOP_P:-1.0}
TOP_K=${TOP_K:--1}
# Of a GPU, for the student's server; the trainer keeps parameters and optimiser beside it.
GPU_MEMORY_UTILIZATION=${GPU_MEMORY_UTILIZATION:-0.5}
TEST_FREQ=${TEST_FREQ:-20}
SAVE_FREQ=${SAVE_FREQ:-20}
RUN_DIR=${RUN_DIR:-outputs/${METHOD}-${MODEL}-seed${SEED}}
NODES=${NODES:-${SLURM_JOB_NUM_NODES:-1}}
TEACHER_NODES=${TEACHER_NODES:-1}

if [ "$NODES" -gt 1 ]; then
    # The same for methods without a teacher, so that the student has the same GPUs under each.
    CLUSTER=(cluster=gpu_nodes trainer.nnodes=$((NODES - TEACHER_NODES)) distillation.nnodes="$TEACHER_NODES")
else
    CLUSTER=(cluster=gpu)
fi

# Only methods that rewrite read these; others would refuse them.
case $METHOD in
    trd_* | sft_*)
        REWRITE=(trd.rewrite.temperature="$TEMPERATURE" trd.rewrite.top_p="$TOP_P" trd.rewrite.top_k="$TOP_K")
        ;;
    *) REWRITE=() ;;
esac

launch \
    method="$METHOD" model="$MODEL" data="$DATA" "${CLUSTER[@]}" \
    data.train_batch_size="$TRAIN_BATCH_SIZE" \
    data.max_prompt_length="$MAX_PROMPT_LENGTH" \
    data.max_response_length="$MAX_RESPONSE_LENGTH" \
    data.max_refine_length="$MAX_REFINE_LENGTH" \
    data.seed="$SEED" \
    actor_rollout_ref.actor.optim.lr="$LR" \
    actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.1 \
    actor_rollout_ref.actor.optim.lr_scheduler_type=cosine \
    actor_rollout_ref.actor.optim.min_lr_ratio=0.1 \
    actor_rollout_ref.actor.optim.weight_decay=0.005 \
    actor_rollout_ref.actor.optim.betas="[0.9,0.95]" \
    actor_rollout_ref.actor.fsdp_config.seed="$SEED" \
    actor_rollout_ref.rollout.temperature="$TEMPERATURE" \
    actor_rollout_ref.rollout.top_p="$TOP_P" \
    actor_rollout_ref.rollout.top_k="$TOP_K" \
    actor_rollout_ref.rollout.seed="$SEED" \
    actor_rollout_ref.rollout.gpu_memory_utilization="$GPU_MEMORY_UTILIZATION" \
    "${REWRITE[@]}" \
    trainer.total_training_steps="$TOTAL_STEPS" \
    trainer.test_freq="$TEST_FREQ" \
    trainer.save_freq="$SAVE_FREQ" \
    trainer.max_actor_ckpt_to_keep=2 \
    trainer.default_local_dir="$RUN_DIR" \
    "$@"
