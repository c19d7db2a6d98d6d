#!/usr/bin/env bash
# Train with processes started by the DeepSpeed launcher: bash launch/deepspeed.sh --config FILE [KEY=VALUE]...
# HPCDEQ_PROCESSES: how many on this machine (default: one a GPU).
exec deepspeed ${HPCDEQ_PROCESSES:+--num_gpus="$HPCDEQ_PROCESSES"} --no_local_rank --module hpcdeq train "$@"
