# Sourced by scripts/lib/launch.sh inside a SLURM allocation: one run on all nodes of the job.
# shellcheck shell=bash
#   CONTAINER           image: run inside it; a .sqsh or registry name for pyxis, a .sif for apptainer
#   CONTAINER_RUNTIME   pyxis or apptainer (default: apptainer for .sif, else pyxis)
#   CONTAINER_MOUNTS    what the container sees beside the repository: /a:/a,/b:/b
#   INTERFACE           network interface that joins the nodes (default: that of the route between them)
#   RAY_NUM_CPUS, RAY_NUM_GPUS   resources of a node (default: the CPUs of the job on the node, its GPUs)
#   JOIN_TIMEOUT_S      longest wait for all nodes, s (default 600)
#   JOB_ROOT            where job folders are made (default outputs/slurm); every node must see it
#   RESULTS             file that gets one line for each run (default JOB_ROOT/results.jsonl)
# The folder of a job, outputs/slurm/<job>-<run>/, holds code/ (the code that runs), commit.txt, changes.diff,
# arguments, and a folder for each attempt: 0, 1, ... after a requeue.

# The job's name for SLURM's commands. The id of one task of an array is that of the whole array, which they would mean.
JOB=${SLURM_JOB_ID:-JOB}
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

say_job() {
    echo "== $(date '+%F %T') job $JOB: $*"
}

job_dir() {
    echo "$(realpath -m "${JOB_ROOT:-outputs/slurm}")/$JOB-$(basename "$RUN_DIR")"
}

# Sets SRUN_OPTIONS and INSIDE: what goes to srun, and before a command, so that it runs in the container.
container() {
    local mounts="$ROOT:$ROOT${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}" runtime=${CONTAINER_RUNTIME:-}
    SRUN_OPTIONS=() INSIDE=()
    [ -n "${CONTAINER:-}" ] || return 0
    if [ -z "$runtime" ]; then
        case $CONTAINER in *.sif) runtime=apptainer ;; *) runtime=pyxis ;; esac
    fi
    case $runtime in
    pyxis) SRUN_OPTIONS=(--container-image="$CONTAINER" --container-mounts="$mounts" --container-workdir="$ROOT") ;;
    apptainer) INSIDE=(apptainer exec --nv --bind "$mounts" --pwd "$ROOT" "$CONTAINER") ;;
    *)
        echo "CONTAINER_RUNTIME=$runtime: choose pyxis or apptainer" >&2
        exit 2
        ;;
    esac
}

# Sets JOB_COMMAND: srun, the container, node.sh, the training command.
job_command() {
    local nodes=${SLURM_JOB_NUM_NODES:-1}
    container
    # An existing cluster refuses to be given resources; the nodes brought them along.
    JOB_COMMAND=(
        srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --overlap --kill-on-bad-exit=1 --mpi=none
        "${SRUN_OPTIONS[@]}" "${INSIDE[@]}" bash "$(job_dir)/code/scripts/slurm/node.sh"
        "$PYTHON" -m recipe.trd.main ray_kwargs.ray_init.num_cpus=null ray_kwargs.ray_init.num_gpus=null
        trainer.checkpoint_callback_class=recipe.trd.training.preemption.StopOnRequest "$@"
    )
}

# A copy of the code, so that the repository may change while the job waits, runs or is requeued. What is not code
# (data, outputs, .venv) is linked, so that relative paths mean the same in it.
snapshot() {
    local code=$1 entry
    mkdir -p "$code"
    tar --exclude=__pycache__ -cf - recipe verl_ext configs scripts | tar -xf - -C "$code"
    for entry in * .[!.]*; do
        [ -e "$code/$entry" ] || [ "$entry" = .git ] || ln -s "$ROOT/$entry" "$code/$entry"
    done
    git rev-parse HEAD >"$code/../commit.txt" 2>/dev/null || echo unknown >"$code/../commit.txt"
    git diff HEAD -- recipe verl_ext configs scripts >"$code/../changes.diff" 2>/dev/null || true
}

# Two jobs in one run folder would destroy each other's checkpoints.
claim_run_dir() {
    local owner_file owner
    owner_file=$JOB_ROOT_DIR/owners/$(basename "$RUN_DIR")-$(cksum <<<"$RUN_DIR" | cut -d ' ' -f 1)
    mkdir -p "$(dirname "$owner_file")"
    owner=$(cat "$owner_file" 2>/dev/null || true)
    if [ -n "$owner" ] && [ "$owner" != "$JOB" ] &&
        [ -n "$(squeue --noheader --jobs="$owner" --states=RUNNING,COMPLETING,SUSPENDED 2>/dev/null)" ]; then
        say_job "$RUN_DIR is in use by job $owner, which is running: set RUN_DIR or SEED, or wait for it" >&2
        exit 2
    fi
    echo "$JOB" >"$owner_file"
}

checkpointed_step() {
    cat "$RUN_DIR/latest_checkpointed_iteration.txt" 2>/dev/null || echo 0
}

# Put the job back into the queue; it keeps its id, so it finds its folder, and resumes. SLURM then ends this script.
requeue() {
    if [ "$(checkpointed_step)" -le "$STEP_AT_START" ]; then
        say_job "no step was saved in this attempt, so another one would get no further: raise --time or --signal, or" \
            "lower trainer.save_freq or the size of a step" >&2
        exit 1
    fi
    if [ "${ENVIRONMENT:-}" != BATCH ]; then
        say_job "stopped after step $(checkpointed_step); the same command resumes"
        exit 0
    fi
    say_job "back into the queue after step $(checkpointed_step)"
    scontrol requeue "$JOB" || say_job "cannot be requeued here; submit the same command to resume" >&2
    sleep 60
    exit 1
}

# Whether this attempt is still the job, and not one that SLURM is about to cancel or requeue.
is_running() {
    [ "${ENVIRONMENT:-}" != BATCH ] || [ "$(squeue --noheader --jobs="$JOB" --format=%T)" = RUNNING ]
}

# Sets SECONDS_LEFT until the time limit; a day where SLURM knows of none.
read_time_left() {
    local end
    end=$(date -d "$(squeue --noheader --jobs="$JOB" --format=%e 2>/dev/null)" +%s 2>/dev/null) || end=
    SECONDS_LEFT=$((${end:-$(date +%s) + 86400} - $(date +%s)))
}

# prepare_attempt OVERRIDE...: the folders, and everything that node.sh and the run find in the environment.
prepare_attempt() {
    local number=0
    JOB_DIR=$(job_dir)
    JOB_ROOT_DIR=$(dirname "$JOB_DIR")
    claim_run_dir
    CODE=$JOB_DIR/code
    if [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || [ ! -f "$JOB_DIR/arguments" ]; then
        rm -rf "$CODE"
        snapshot "$CODE"
        printf '%s\0' "$@" >"$JOB_DIR/arguments"
    fi
    mapfile -d '' -t ARGUMENTS <"$JOB_DIR/arguments"
    while [ -e "$JOB_DIR/$number" ]; do number=$((number + 1)); done
    ATTEMPT_DIR=$JOB_DIR/$number
    mkdir "$ATTEMPT_DIR"
    TRD_STOP_FILE=$ATTEMPT_DIR/stop
    # The job's own Ray: nobody else can join it or talk to it.
    RAY_AUTH_MODE=token
    RAY_AUTH_TOKEN=$(od -An -N 32 -tx1 /dev/urandom | tr -d ' \n')
    case $PYTHON in */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;; esac
    RAY_NUM_CPUS=${RAY_NUM_CPUS:-${SLURM_CPUS_ON_NODE:-}}
    # The route to another node shows which interface joins them.
    HOSTS=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-}" 2>/dev/null || true)
    export ATTEMPT_DIR CODE PYTHON HOSTS TRD_STOP_FILE RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_NUM_CPUS
    unset RAY_ADDRESS
    STEP_AT_START=$(checkpointed_step)
}

# Sets CODE_OF_RUN. Passes a warning on to the run, and puts the job back into the queue when the run is too slow for it.
supervise() {
    local requested=0 srun_pid
    CODE_OF_RUN=0
    trap 'requested=1; touch "$TRD_STOP_FILE"; say_job "signal: the run is asked to save and stop"' USR1
    # --input=none: a job in the background would otherwise be stopped for reading the terminal.
    "${JOB_COMMAND[0]}" --input=none "${JOB_COMMAND[@]:1}" > >(tee -a "$ATTEMPT_DIR/output.log") 2>&1 &
    srun_pid=$!
    trap 'kill -TERM "$srun_pid" 2>/dev/null' TERM INT
    while kill -0 "$srun_pid" 2>/dev/null; do
        sleep 1 &
        wait $! || true
        if [ "$requested" = 1 ]; then
            read_time_left
            requested=2
            DEADLINE=$((SECONDS + SECONDS_LEFT - ${REQUEUE_MARGIN_S:-60}))
        fi
        if [ "$requested" = 2 ] && [ "${ENVIRONMENT:-}" = BATCH ] && [ "$SECONDS" -ge "$DEADLINE" ]; then
            say_job "the step does not end in time"
            requeue
        fi
    done
    wait "$srun_pid" || CODE_OF_RUN=$?
}

# run_job OVERRIDE...: does not return.
run_job() {
    # Relative to the repository, not to the snapshot in which the run works.
    RUN_DIR=$(realpath -m "$RUN_DIR")
    prepare_attempt "$@" trainer.default_local_dir="$RUN_DIR"
    job_command "${ARGUMENTS[@]}"
    quoted "${JOB_COMMAND[@]}" >"$ATTEMPT_DIR/command"
    say_job "attempt $(basename "$ATTEMPT_DIR") on ${SLURM_JOB_NODELIST:-?}, from step $STEP_AT_START;" \
        "logs in $ATTEMPT_DIR, run in $RUN_DIR"
    supervise
    if [ "$CODE_OF_RUN" = 0 ] && [ -f "${TRD_STOP_FILE}ped" ]; then
        requeue
    fi
    is_running || exit "$CODE_OF_RUN"
    # Where the interpreter is: in the container if there is one.
    srun --nodes=1 --ntasks=1 --overlap --mpi=none "${SRUN_OPTIONS[@]}" "${INSIDE[@]}" \
        "$PYTHON" "$CODE/scripts/slurm/result_line.py" "$RUN_DIR" --exit-code="$CODE_OF_RUN" --job-dir="$JOB_DIR" \
        --results="${RESULTS:-$JOB_ROOT_DIR/results.jsonl}" || say_job "no result line could be written" >&2
    exit "$CODE_OF_RUN"
}
