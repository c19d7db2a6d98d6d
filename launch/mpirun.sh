#!/usr/bin/env bash
# Train with processes started by MPI: bash launch/mpirun.sh --config FILE [KEY=VALUE]...
# HPCDEQ_PROCESSES: how many (default: what mpirun finds: its hosts' slots, or the allocation of SLURM).
exec mpirun ${HPCDEQ_PROCESSES:+-n "$HPCDEQ_PROCESSES"} python -m hpcdeq train "$@"
