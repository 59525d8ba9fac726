#!/usr/bin/env bash
# Usage: tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# On a machine without a GPU, GPUS is the number of processes.
set -e
if [ $# -lt 2 ]; then
    sed -n 's/^# //p' "$0" >&2
    exit 2
fi
root=$(dirname "$0")/..

PYTHONPATH="$root:$PYTHONPATH" exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" \
    "$root/tools/train.py" "$1" --launcher pytorch "${@:3}"
