#!/bin/bash
# In under 8 minutes of one GPU: are its embeddings and steps those of a CPU (to 1e-4), do fp16, bf16 and torch.compile
# train, what share of the matrix-product rate do steps of tiny, small and paper reach, how many hours of sound a second
# are embedded. Without a GPU the same, smaller, on the CPU, and the first line says so.
#
#     benchmarks/gpu.sh [--device cuda:1]        PYTHON=python3.12 benchmarks/gpu.sh takes that Python
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
exec timeout 480 "${PYTHON:-python}" benchmarks/gpu.py "$@"
