#!/usr/bin/env bash
# Train with the processes of one machine, started by torchrun: bash launch/torchrun.sh --config FILE [KEY=VALUE]...
# HPCDEQ_PROCESSES: how many (default: one a GPU; without GPUs, one a core).
exec python -m torch.distributed.run --standalone --nproc-per-node="${HPCDEQ_PROCESSES:-auto}" -m hpcdeq train "$@"
