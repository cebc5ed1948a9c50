#!/usr/bin/env bash
# A training on all GPUs of this machine, a process each; PROCESSES=2 takes two.
#
#   bash examples/cluster/one_node.sh my.yaml --output runs/mine
#
# Ctrl-C, or SIGTERM to torchrun: every process saves, and the run can be resumed.
set -euo pipefail

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
exec torchrun --standalone --nproc-per-node "${PROCESSES:-gpu}" -m metamorph train "$@"
