#!/usr/bin/env bash
# Usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# On a machine without a GPU, GPUS is the number of processes.
set -e
if [ $# -lt 3 ]; then
    sed -n 's/^# //p' "$0" >&2
    exit 2
fi
root=$(dirname "$0")/..

PYTHONPATH="$root:$PYTHONPATH" exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$root/tools/test.py" "$1" "$2" --launcher pytorch "${@:4}"
