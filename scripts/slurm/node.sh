#!/usr/bin/env bash
# One node of a job; srun starts it once on every node, inside the container where there is one. The first node runs
# Ray's head and the training command, the others a Ray worker each. Everything is the job's own: ports, folder for
# temporary files, token. What this script started it ends, by process id; it never calls `ray stop`, which would end
# the Ray of other jobs on the node as well.
#   node.sh COMMAND...      needs the variables that job.sh exports
set -euo pipefail

NODE=${SLURM_PROCID:?is set by srun}
NUM_NODES=${SLURM_NTASKS:?is set by srun}
HEAD_FILE=$ATTEMPT_DIR/head
DONE_FILE=$ATTEMPT_DIR/done
# Short, and on the node's own disk: it holds sockets, whose paths may have 107 characters.
RAY_TMP=$(mktemp -d "${RAY_TMP_ROOT:-/tmp}/trd-$SLURM_JOB_ID-XXXXXX")
RAY_PID=

finish() {
    trap - EXIT TERM INT
    if [ "$NODE" = 0 ]; then touch "$DONE_FILE"; fi
    if [ -n "$RAY_PID" ]; then
        kill -TERM "$RAY_PID" 2>/dev/null || true
        for _ in {1..20}; do
            kill -0 "$RAY_PID" 2>/dev/null || break
            sleep 0.5
        done
        # Ray's agents outlive a raylet that is killed. The session is Ray's own, see start_ray.
        pkill -KILL -s "$RAY_PID" || true
    fi
    rm -rf "$RAY_TMP"
}
trap finish EXIT

say() {
    echo "== node $NODE ($(hostname)): $*"
}

fail() {
    say "$*" >&2
    exit 1
}

start_ray() {
    local ports resources=()
    read -ra ports < <("$PYTHON" "$CODE/scripts/slurm/network.py" ports 4)
    [ -z "${RAY_NUM_CPUS:-}" ] || resources+=(--num-cpus="$RAY_NUM_CPUS")
    [ -z "${RAY_NUM_GPUS:-}" ] || resources+=(--num-gpus="$RAY_NUM_GPUS")
    # There is nothing to drain: the run has ended, or the node is being taken away.
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
    # Ports of workers: 0 lets the system choose, so that jobs that share a node never meet.
    setsid "$PYTHON" -m ray.scripts.scripts start "$@" --block --node-ip-address="$ADDRESS" --temp-dir="$RAY_TMP" \
        --min-worker-port=0 --max-worker-port=0 --node-manager-port="${ports[0]}" --object-manager-port="${ports[1]}" \
        --dashboard-agent-listen-port="${ports[2]}" --metrics-export-port="${ports[3]}" \
        --disable-usage-stats "${resources[@]}" >"$ATTEMPT_DIR/ray-$NODE.log" 2>&1 &
    RAY_PID=$!
}

ray_is_up() {
    kill -0 "$RAY_PID" 2>/dev/null || fail "Ray did not start or died; see $ATTEMPT_DIR/ray-$NODE.log"
}

# The first node looks at its route to the last one, the others at theirs to the first.
if [ "$NODE" = 0 ]; then PEER=$(tail -n 1 <<<"$HOSTS"); else PEER=$(head -n 1 <<<"$HOSTS"); fi
read -r ADDRESS INTERFACE_NAME < <("$PYTHON" "$CODE/scripts/slurm/network.py" address \
    --peer="$PEER" --interface="${INTERFACE:-}") || true
[ -n "${ADDRESS:-}" ] || fail "no network address; set INTERFACE to the interface that joins the nodes"
export VLLM_HOST_IP=$ADDRESS
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$INTERFACE_NAME}
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$INTERFACE_NAME}
# Python and Ray's workers find the snapshot before the repository: by the path and by the working directory.
export PYTHONPATH=$CODE${PYTHONPATH:+:$PYTHONPATH}
cd "$CODE"

if [ "$NODE" = 0 ]; then
    read -r PORT CLIENT_PORT < <("$PYTHON" scripts/slurm/network.py ports 2)
    start_ray --head --port="$PORT" --ray-client-server-port="$CLIENT_PORT" --include-dashboard=false
    export RAY_ADDRESS=$ADDRESS:$PORT
    until (exec 3<>"/dev/tcp/$ADDRESS/$PORT") 2>/dev/null; do
        ray_is_up
        sleep 0.2
    done
    # Written in one go: another node may read it at any moment.
    echo "$RAY_ADDRESS" >"$HEAD_FILE.partial" && mv "$HEAD_FILE.partial" "$HEAD_FILE"
    say "Ray's head listens on $RAY_ADDRESS ($INTERFACE_NAME)"
    "$PYTHON" scripts/slurm/wait_for_nodes.py --num-nodes="$NUM_NODES" --timeout-s="${JOIN_TIMEOUT_S:-600}"
    "$@" &
    COMMAND_PID=$!
    # The training command ends on SIGTERM as on Ctrl-C, and takes its processes along.
    trap 'kill -TERM "$COMMAND_PID" 2>/dev/null' TERM INT
    code=0
    wait "$COMMAND_PID" || code=$?
    while kill -0 "$COMMAND_PID" 2>/dev/null; do
        code=0
        wait "$COMMAND_PID" || code=$?
    done
    exit "$code"
fi

WAITED_S=0
until [ -f "$HEAD_FILE" ]; do
    [ ! -f "$DONE_FILE" ] || fail "the first node ended before Ray was up"
    [ "$WAITED_S" -lt "${JOIN_TIMEOUT_S:-600}" ] || fail "no address of Ray's head in $ATTEMPT_DIR after $WAITED_S s"
    sleep 1
    WAITED_S=$((WAITED_S + 1))
done
start_ray --address="$(cat "$HEAD_FILE")"
until [ -f "$DONE_FILE" ]; do
    ray_is_up
    sleep 1
done
