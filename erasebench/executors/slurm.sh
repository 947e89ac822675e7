#!/usr/bin/env bash
# A Ray cluster over all nodes of a Slurm allocation, and an erasebench command on it.
#
#   sbatch --nodes=4 --ntasks-per-node=1 --cpus-per-task=32 --gpus-per-node=4 --time=12:00:00 slurm.sh \
#       -m experiment=rece_nudity method=none,uce,rece results=/shared/results
#
# The arguments are those of erasebench; executor=ray and the cluster's address are added. results= and data= must lie on a
# disk that all nodes see; so must this environment (ERASEBENCH_PYTHON, default: the python in PATH). The exit code is the
# command's. Only processes that this script has started are ended: no `ray stop`, which would end those of other jobs too.
# A job that is stopped or requeued goes on from what is stored: submit the same line again.
set -euo pipefail

: "${SLURM_JOB_ID:?must run inside a Slurm allocation: sbatch slurm.sh ..., or salloc and then slurm.sh ...}"
: "${SLURM_JOB_NODELIST:?must run inside a Slurm allocation}"
python=${ERASEBENCH_PYTHON:-python}
port=${ERASEBENCH_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
cores=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
gpus=${gpus##*:} # a100:4 is 4
export RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_MODE=token # a word of this job alone, without which nobody talks to its cluster
RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$("$python" -c 'import secrets; print(secrets.token_hex(32))')}
export RAY_AUTH_TOKEN
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # nobody waits for a drained node here

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
started=()
main=

# shellcheck disable=SC2329 # the trap calls it
finish() {
    trap - EXIT
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait || true
}
trap finish EXIT
trap '[[ -n $main ]] && kill -TERM "$main" 2>/dev/null' TERM INT

task=(srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$cores") # one task, beside whatever else the allocation runs

ray_on() { # ray_on NODE OPTIONS...: that node's part of the cluster, until its srun is killed
    local node=$1
    shift
    "${task[@]}" --nodelist="$node" "$python" -m ray.scripts.scripts start "$@" --num-cpus="$cores" --num-gpus="$gpus" \
        --disable-usage-stats --block >&2 &
    started+=("$!")
}

ip=$("${task[@]}" --nodelist="${nodes[0]}" hostname -I | awk '{print $1}')
ray_on "${nodes[0]}" --head --node-ip-address="$ip" --port="$port" --include-dashboard=false
for node in "${nodes[@]:1}"; do
    ray_on "$node" --address="$ip:$port"
done

# The command begins when the head answers; workers of nodes that come later are used when they come.
for _ in $(seq 60); do
    "$python" -c "import socket; socket.create_connection(('$ip', $port), 2)" 2>/dev/null && break
    sleep 1
done

"$python" -m erasebench executor=ray executor.address="$ip:$port" "$@" &
main=$!
code=0
wait "$main" || code=$?
if kill -0 "$main" 2>/dev/null; then # a signal ended the first wait; the command is saying its last words
    code=0
    wait "$main" || code=$?
fi
exit "$code"
