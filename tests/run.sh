#!/usr/bin/env bash
# Run the tests: bash tests/run.sh [pytest arguments]. Sets everything up first.
# HPCDEQ_DATA: folder with real scenes (cave/train, cave/val, formats/...); tests on real data are skipped without it.
set -euo pipefail
if [ -n "${HPCDEQ_DATA:-}" ]; then
    HPCDEQ_DATA=$(realpath "$HPCDEQ_DATA") # given relative to where the caller stands
    export HPCDEQ_DATA
    echo "tests: real data in $HPCDEQ_DATA"
else
    echo "tests: HPCDEQ_DATA is not set; tests on real data are skipped"
fi
cd "$(dirname "$0")/.."

bash launch/setup.sh dev
if [ $# = 0 ]; then # the fast tests first, on all cores
    set -- --numprocesses auto --maxprocesses 4 --dist loadgroup tests/unit
    for folder in tests/*/; do
        case $folder in tests/unit/ | *__pycache__/) ;; *) set -- "$@" "$folder" ;; esac
    done
fi
# Threads that wait must sleep: on cores shared with other work, spinning ones make torch several times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
exec "${HPCDEQ_VENV:-.venv}/bin/python" -m pytest "$@"
