#!/usr/bin/env bash
# A training on the GPUs of several machines that share a file system. The same command on each:
#
#   NODES=4 HOST=node-a bash examples/cluster/many_nodes.sh my.yaml --output runs/mine
#
# HOST is one of them, where all meet at PORT; PROCESSES=2 takes two GPUs of each machine.
set -euo pipefail

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
exec torchrun --nnodes "$NODES" --nproc-per-node "${PROCESSES:-gpu}" --rdzv-id metamorph \
  --rdzv-backend c10d --rdzv-endpoint "$HOST:${PORT:-29500}" -m metamorph train "$@"
