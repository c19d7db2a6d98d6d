#!/usr/bin/env bash
# What lab.sh runs on a node's machine: node.sh boot LAB NODE ADDRESS | start-slurmd LAB | kill-slurmd LAB
set -euo pipefail
verb=$1 lab=$2
export SLURM_CONF=$lab/etc/slurm.conf

slurmd_pid() { # of this node, if it runs
    local pid
    pid=$(cat "$lab/run/slurmd-$(hostname).pid" 2>/dev/null) || return 1
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = slurmd ] && echo "$pid"
}

start_slurmd() {
    # A clean environment, also when a user restarts it: jobs inherit it.
    slurmd_pid >/dev/null || env -i PATH="$PATH" LANG=C.UTF-8 SLURM_CONF="$SLURM_CONF" slurmd
}

boot() { # NODE ADDRESS
    hostname "$1"
    mount --bind "$lab/etc/hosts" /etc/hosts
    mount -t tmpfs -o mode=1777 shm /dev/shm
    mount -t tmpfs none "$lab/bin"   # here the network is right: jobs find SLURM's own commands
    mount -t tmpfs none "$lab/munge" # each machine has its own
    munged --force --num-threads=2 --key-file="$lab/etc/munge.key" --socket="$lab/munge/socket" \
        --pid-file="$lab/munge/pid" --seed-file="$lab/munge/seed" --log-file="$lab/munge/log"
    mkdir -p "$lab/spool/$1"
    rm -f "$lab/run/slurmd-$1.pid" # of an earlier life
    ip link set lo up
    until ip address add "$2/24" dev eth0 2>/dev/null; do sleep 0.02; done # once the cable is plugged in
    ip link set eth0 up
    start_slurmd
    # This shell stays: as the first process, it must collect orphans that end.
    sleep infinity
}

case $verb in
    boot) boot "$3" "$4" ;;
    start-slurmd) start_slurmd ;;
    kill-slurmd) kill -KILL "$(slurmd_pid)" ;;
esac
