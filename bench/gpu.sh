#!/usr/bin/env bash
# Tests and benchmarks of the GPU kernels from a bare checkout: needs bash, torch, Triton, pytest.
#   bench/gpu.sh [--quick] [--device cuda|cpu] [--fresh]
# OUT is the folder of results (default bench/out), PYTHON the interpreter (default python3), WHEELS
# a folder of wheels of peers that the machine lacks: unpacked into build/, not installed.
set -euo pipefail
export OUT="$(realpath -m "${OUT:-$(dirname "${BASH_SOURCE[0]}")/out}")"
WHEELS="${WHEELS:+$(realpath "$WHEELS")}"
PYTHON="${PYTHON:-python3}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
# As Triton and Inductor keep what they compiled: an entry is a process of its own.
export FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED=1 FLEX_ATTENTION_CUTE_DSL_CACHE_ENABLED=1
if [[ -n "$WHEELS" ]]; then
    shopt -s nullglob
    export UNPACKED_WHEELS="$PWD/build/unpacked-wheels"
    rm -rf build/unpacked-wheels && mkdir -p build/unpacked-wheels
    for wheel in "$WHEELS"/*.whl; do  # one by one: a wheel for another Python is one peer less
        "$PYTHON" -m pip install --quiet --no-index --no-deps --target build/one-wheel "$wheel" &&
            cp -r build/one-wheel/. build/unpacked-wheels/ ||  # some share a folder
            echo "left out: ${wheel##*/}" >&2
        rm -rf build/one-wheel
    done
fi
exec "$PYTHON" -m bench.runs.gpu "$@"
