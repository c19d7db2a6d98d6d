#!/usr/bin/env bash
# Train the four models by the recipe of configs/, on a machine with a GPU, in calls of limited length:
#
#   bash launch/gpu.sh TRAIN.zarr VAL.zarr OUT [KEY=VALUE]...
#
# Each call checks what it has not checked yet, goes on with the training where the last one stood, and ends with exit code 75 while
# something is left: call it again. OUT/state.tar carries everything to another machine: put it into an empty OUT there.
# HPCDEQ_SECONDS: length of a call (default: 500). HPCDEQ_PYTHON: a Python with hpcdeq's dependencies (default: python3).
# HPCDEQ_START: what the first of the four goes on from: `du-fast`, the model that comes along, or another (default: the prior alone).
# KEY=VALUE are settings of every training, e.g. device=cpu training.steps=10 to try it out.
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
train=$(realpath "$1") val=$(realpath "$2") out=$(realpath -m "$3")
shift 3
python=${HPCDEQ_PYTHON:-python3}
limit=${HPCDEQ_SECONDS:-500}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
mkdir -p "$out/runs"
cd "$out"
if [ -f state.tar ] && [ ! -d runs/prior ]; then tar -xf state.tar; fi

keep() { # all that a later call needs: of a finished training its model and its record only
    local run extra=()
    for run in runs/*/; do
        if [ -f "${run}model/model.json" ]; then extra+=(--exclude "${run}checkpoints"); fi
    done
    shopt -s nullglob
    tar -cf state.tar.new "${extra[@]}" runs *.txt *.done && mv state.tar.new state.tar # never half of one over a whole one
}
trap keep EXIT

within() { # run a command; end the call, to go on in the next one, if there is no time left for it
    local left=$((limit - SECONDS)) code=0
    if [ "$left" -lt 20 ]; then
        echo "gpu: out of time; call again to go on"
        exit 75
    fi
    timeout --preserve-status --signal=TERM --kill-after=60 "$left" "$@" || code=$?
    if [ "$code" = 75 ] || [ "$code" = 143 ]; then
        echo "gpu: out of time; call again to go on"
        exit 75
    fi
    return "$code"
}

hpcdeq() { within "$python" -m hpcdeq "$@"; }

if [ ! -f checked.done ]; then
    "$python" -m hpcdeq doctor | tee doctor.txt || true
    if "$python" -c 'import pytest, hypothesis, pytest_timeout' 2>/dev/null; then
        (cd "$root" && within "$python" -m pytest -q -p no:cacheprovider tests/gpu tests/unit/models/test_full_kernel.py) |
            tee checks.txt
    else
        echo "gpu: pytest, hypothesis and pytest-timeout are not here: correctness is not checked" | tee checks.txt
    fi
    touch checked.done
fi
if [ ! -f timed.done ] && "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    (cd "$root/benchmarks" && within "$python" maps.py --device cuda --size 1300 --overlap 0) | tee timings.txt
    touch timed.done
fi

# A run remembers the paths it was given: these stay, wherever OUT and the archives lie the next time.
ln -sfn "$train" train.zarr
ln -sfn "$val" val.zarr
settings=(data.train=train.zarr data.val=val.zarr dictionary=runs/dictionary.safetensors "$@")
if [ ! -f runs/dictionary.safetensors ]; then hpcdeq dictionary train.zarr --out runs/dictionary.safetensors; fi
for step in prior: "du-fast:${HPCDEQ_START:-runs/prior/model}" deq-fast:runs/du-fast/model du-full:runs/du-fast/model deq-full:runs/deq-fast/model; do
    name=${step%%:*} before=${step#*:}
    if [ -f "runs/$name/model/model.json" ]; then continue; fi
    start=()
    if [ -n "$before" ]; then start=("training.start_from=$before" training.pretrain_steps=0); fi
    hpcdeq train --config "$root/configs/$name.yaml" "${settings[@]}" "${start[@]}" "run=runs/$name"
done
for name in prior du-fast deq-fast du-full deq-full; do
    if [ -f "$name.done" ]; then continue; fi
    hpcdeq evaluate val.zarr --model "runs/$name/model" | tee "$name.txt"
    touch "$name.done"
done
echo "gpu: all is done; models: $out/runs/*/model, scores: $out/*.txt"
