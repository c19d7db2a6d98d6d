#!/usr/bin/env bash
# From nothing to a denoised scene and a report page, in under 5 minutes on 2 cores: bash launch/quickstart.sh [FOLDER]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(realpath -m "${1:-hpcdeq-demo}")

bash "$root/launch/setup.sh" report
cd "$root"
# Threads that wait must sleep: spinning ones made this 7 times slower on cores shared with other work.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
exec "${HPCDEQ_VENV:-.venv}/bin/hpcdeq" demo --out "$out"
