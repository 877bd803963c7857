#!/bin/sh
# What a GPU makes of banditgrid, as a report: one command, from a clone, on a machine with an
# NVIDIA GPU and its driver. Makes the environment, vLLM for CUDA included, then runs
# tests/benchmarks/gpu_check.py, to which words are passed on (--help tells them; a relative --out
# is below the repository). Ctrl-C, and the same command goes on. Leaves out other makers' GPUs.
set -eu
cd "$(dirname "$0")/.."
make setup
python=.venv/bin/python
absent='import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is not None)'
if command -v nvidia-smi >/dev/null 2>&1 && $python -c "$absent"; then
    echo "Installing vLLM for CUDA (some gigabytes, once) ..."
    # shellcheck disable=SC2086  # PIP_ARGS are words
    $python -m pip install --quiet --disable-pip-version-check -c constraints.txt ${PIP_ARGS:-} \
        -e '.[vllm]' || echo "vLLM could not be installed: going on without it" >&2
fi
exec $python -m tests.benchmarks.gpu_check "$@"
