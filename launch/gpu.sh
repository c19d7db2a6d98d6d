#!/usr/bin/env bash
# Train on from the models that come along, on a machine with a GPU, in calls of limited length:
#
#   bash launch/gpu.sh TRAIN.zarr VAL.zarr OUT [[NAME:]KEY=VALUE]...
#
# The four models and the prior alone, which begins anew, are trained side by side, as one leaves a GPU idle most of the time.
# Each call checks what it has not checked yet, goes on with the trainings where the last one stood, and ends with exit code 75 while
# something is left: call it again. OUT/state.tar carries everything to another machine: put it into an empty OUT there.
# HPCDEQ_SECONDS: length of a call (default: 500). HPCDEQ_PYTHON: a Python with hpcdeq's dependencies (default: python3).
# KEY=VALUE are settings of all trainings, those after NAME: of one, e.g. device=cpu deq-fast:training.steps=10 to try it out.
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
names=(prior du-fast deq-fast du-full deq-full)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
mkdir -p "$out/runs"
cd "$out"
if [ -f state.tar ] && [ ! -d runs/prior ]; then tar -xf state.tar; fi

keep() { # all that a later call needs: of a finished training its model and its record only
    local code=$? run extra=()
    for run in runs/*/; do
        if [ -f "${run}model/model.json" ]; then extra+=(--exclude "${run}checkpoints"); fi
    done
    shopt -s nullglob
    tar -cf state.tar.new "${extra[@]}" runs *.txt *.done && mv state.tar.new state.tar # never half of one over a whole one
    if [ "$code" = 75 ]; then echo "gpu: out of time; call again to go on"; fi
}
trap keep EXIT

within() { # run a command; 75 if there is no time left for it
    local left=$((limit - SECONDS)) code=0
    if [ "$left" -lt 20 ]; then return 75; fi
    timeout --preserve-status --signal=TERM --kill-after=60 "$left" "$@" || code=$?
    if [ "$code" = 143 ]; then code=75; fi
    return "$code"
}

side_by_side() { # call a function with each name, its output in logs/NAME.log; end the call if one fails, or has no time left
    local name code=0 one pids=()
    mkdir -p logs
    for name in "${names[@]}"; do
        "$@" "$name" >>"logs/$name.log" 2>&1 &
        pids+=($!)
    done
    for i in "${!names[@]}"; do
        one=0
        wait "${pids[$i]}" || one=$?
        if [ "$one" != 0 ] && [ "$one" != 75 ]; then
            echo "gpu: $* ${names[$i]} failed ($one):" >&2
            tail -n 20 "logs/${names[$i]}.log" >&2
        fi
        if [ "$code" = 0 ] || [ "$code" = 75 ] && [ "$one" != 0 ]; then code=$one; fi
    done
    if [ "$code" != 0 ]; then exit "$code"; fi
}

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
settings_of() { # of a training, a line each: the recipe's for large batches, which cost a GPU little more than small ones
    printf '%s\n' data.train=train.zarr data.val=val.zarr "run=runs/$1" data.batch=64
    if [ "$1" = prior ]; then return; fi
    printf '%s\n' "training.start_from=$1" training.pretrain_steps=0 training.start_scalars=true
    case $1 in
        du-fast) printf '%s\n' training.lr=1e-3 training.lr_scalars_factor=5 ;;
        du-full) printf '%s\n' training.lr=7e-4 ;;
        deq-fast) printf '%s\n' training.lr=5e-4 ;;
        deq-full) printf '%s\n' training.lr=4e-4 ;;
    esac
}
given=("$@")
train_one() {
    local name=$1 settings one
    if [ -f "runs/$name/model/model.json" ]; then return; fi
    mapfile -t settings < <(settings_of "$name")
    for one in "${given[@]}"; do
        case ${one%%=*} in
            "$name":*) settings+=("${one#*:}") ;;
            *:*) ;; # another's
            *) settings+=("$one") ;;
        esac
    done
    within "$python" -m hpcdeq train --config "$root/configs/$name.yaml" "${settings[@]}"
}
score_one() {
    if [ -f "$1.txt" ]; then return; fi
    within "$python" -m hpcdeq evaluate val.zarr --model "runs/$1/model" >"$1.new" && mv "$1.new" "$1.txt"
}
side_by_side train_one
side_by_side score_one
tail -n 100 prior.txt du-*.txt deq-*.txt
echo "gpu: all is done; models: $out/runs/*/model, scores: $out/*.txt"
