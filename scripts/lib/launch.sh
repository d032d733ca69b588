# Sourced by the run scripts: start `recipe.trd.main` on this machine, or on every node of the SLURM job that this is.
#   PYTHON     interpreter (default .venv/bin/python)
#   RUN_DIR    folder of the run; a run that is started in it again resumes from its last checkpoint
#   DRY_RUN=1  print configuration, plan and commands, and start nothing
#   USE_SLURM=0  inside an allocation, run on this machine all the same
# shellcheck shell=bash
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$ROOT"
PYTHON=${PYTHON:-.venv/bin/python}

# One task of an array job is one pair of METHODS x SEEDS, seeds first: METHODS="trd_opd grpo" SEEDS="1 2 3" is --array=0-5.
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    read -ra ALL_METHODS <<<"${METHODS:-}"
    read -ra ALL_SEEDS <<<"${SEEDS:-$SLURM_ARRAY_TASK_ID}"
    TASK=$SLURM_ARRAY_TASK_ID
    [ -n "${SEEDS:-}" ] || TASK=0
    NUM_TASKS=$((${#ALL_SEEDS[@]} * (${#ALL_METHODS[@]} > 0 ? ${#ALL_METHODS[@]} : 1)))
    if [ "$TASK" -ge "$NUM_TASKS" ]; then
        echo "array task $TASK, but METHODS x SEEDS are $NUM_TASKS runs: submit with --array=0-$((NUM_TASKS - 1))" >&2
        exit 2
    fi
    SEED=${ALL_SEEDS[TASK % ${#ALL_SEEDS[@]}]}
    [ "${#ALL_METHODS[@]}" = 0 ] || METHOD=${ALL_METHODS[TASK / ${#ALL_SEEDS[@]}]}
fi

# launch OVERRIDE...: does not return.
launch() {
    local argument
    for argument in "$@"; do
        case $argument in trainer.default_local_dir=*) RUN_DIR=${argument#*=} ;; esac
    done
    if [ "${DRY_RUN:-0}" = 1 ]; then
        dry_run "$@"
    elif [ -n "${SLURM_JOB_ID:-}" ] && [ "${USE_SLURM:-1}" = 1 ]; then
        source "$ROOT/scripts/slurm/job.sh"
        run_job "$@"
    else
        exec "$PYTHON" -m recipe.trd.main "$@"
    fi
}

dry_run() {
    source "$ROOT/scripts/slurm/job.sh"
    local fits=0
    "$PYTHON" -m recipe.trd.plan "$@" || fits=$?
    echo "# Command on this machine"
    quoted "$PYTHON" -m recipe.trd.main "$@"
    echo "# Command in a SLURM job, in the folder $(job_dir)"
    job_command "$@"
    quoted "${JOB_COMMAND[@]}"
    exit "$fits"
}

# One command on one line, to be pasted.
quoted() {
    printf '%q ' "$@"
    echo
}
