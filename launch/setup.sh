#!/usr/bin/env bash
# Make a virtual environment with hpcdeq in it: bash launch/setup.sh [report|dev]
#
# Needs Debian or Ubuntu with Python 3.11 or newer, and nothing else. A second run finds all done and is instant.
# HPCDEQ_VENV: where the environment is made (default: .venv in the checkout).
set -euo pipefail
cd "$(dirname "$0")/.."

extra=${1:-report} # report: to use hpcdeq; dev: also to test it
venv=${HPCDEQ_VENV:-.venv}

# What is installed depends on these only; an editable install also remembers where the checkout lies.
state=$(cat pyproject.toml constraints.txt <(pwd) | sha256sum)
for done in "$extra" dev; do # dev holds all that report does
    if [ "$(cat "$venv/.hpcdeq-$done" 2>/dev/null)" = "$state" ]; then exit 0; fi
done

find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: no Python 3.11 or newer found; on Debian 12+ or Ubuntu 24.04+: apt-get install python3 python3-venv" >&2
    return 1
}

make_venv() {
    local python package
    python=$(find_python)
    # Debian ships venv apart from Python, and without it `python -m venv` leaves a half-made folder.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        if [ "$(id -u)" != 0 ]; then
            echo "setup: $python has no venv module; run: sudo apt-get install $package" >&2
            return 1
        fi
        echo "setup: installing $package"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
    fi
    echo "setup: making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
}

pip_install() {
    local quiet=-qq
    if [ -t 1 ]; then quiet=; fi # a terminal gets pip's progress bars
    "$venv/bin/python" -m pip install $quiet --disable-pip-version-check -c constraints.txt "$@"
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then make_venv; fi

torch=$(grep '^torch==' constraints.txt)
echo "setup: installing $torch (large; once)"
if ! command -v nvidia-smi >/dev/null; then
    echo "setup: no NVIDIA GPU here; the CPU build is far smaller than the default one: see docs/install.md"
fi
# First and alone: pip then keeps whatever build of it (CPU, CUDA) your pip configuration chose.
pip_install "$torch"
echo "setup: installing hpcdeq[$extra]"
pip_install -e ".[$extra]"
echo "$state" >"$venv/.hpcdeq-$extra"
