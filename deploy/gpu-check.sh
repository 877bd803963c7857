#!/bin/sh
# What a GPU makes of banditgrid, as a report: one command, from a clone, on a machine with an
# NVIDIA GPU and its driver. Makes the environment, vLLM for CUDA included where it is asked for,
# then runs tests/benchmarks/gpu_check.py, to which words are passed on (a relative --out is below
# the repository). Ctrl-C, and the same command goes on. Leaves out other makers' GPUs.
set -eu
cd "$(dirname "$0")/.."

# Told here, since the check's own words need the environment, which takes gigabytes.
usage() {
    cat <<'END'
usage: deploy/gpu-check.sh [--out OUT] [--engine {auto,vllm,transformers,both}]
                           [--trials TRIALS] [--lr LR] [--tiny]

What a GPU makes of the whole worker: makes the environment, then measures and reports.

  -h, --help     show this, and install nothing
  --out OUT      folder of the report (gpu-report)
  --engine ...   auto: vllm if there; transformers: vLLM is not installed
  --trials N     at once; default: what fits, at most 8
  --lr LR        learning rate; default: the model's usual one
  --tiny         an embedded model, on a CPU too
END
}

engine=auto
before=
for word in "$@"; do
    case $word in
        -h | --help) usage && exit ;;
        --engine=*) engine=${word#--engine=} ;;
    esac
    if [ "$before" = --engine ]; then engine=$word; fi
    before=$word
done

make setup
python=.venv/bin/python
absent='import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is not None)'
if [ "$engine" != transformers ] && command -v nvidia-smi >/dev/null 2>&1 &&
    $python -c "$absent"; then
    echo "Installing vLLM for CUDA (some gigabytes, once) ..."
    # shellcheck disable=SC2086  # PIP_ARGS are words
    $python -m pip install --quiet --disable-pip-version-check -c constraints.txt ${PIP_ARGS:-} \
        -e '.[vllm]' || echo "vLLM could not be installed: going on without it" >&2
fi
exec $python -m tests.benchmarks.gpu_check "$@"
