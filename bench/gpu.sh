#!/usr/bin/env bash
# Tests and benchmarks of the GPU kernels from a bare checkout: needs bash, torch, Triton, pytest.
#   bench/gpu.sh [--quick] [--device cuda|cpu] [--fresh]
# OUT is the folder of results (default bench/out), PYTHON the interpreter (default python3).
set -euo pipefail
export OUT="$(realpath -m "${OUT:-$(dirname "${BASH_SOURCE[0]}")/out}")"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m bench.gpu "$@"
