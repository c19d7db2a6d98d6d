#!/usr/bin/env bash
# The first process of the controller's machine: network, authentication, data base, accounting, controller.
# lab.sh starts it: head.sh LAB SUBNET
set -euo pipefail
lab=$1 subnet=$2
run=$lab/run log=$lab/log
export SLURM_CONF=$lab/etc/slurm.conf

wait_until() { # COMMAND...
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.05
    done
    echo "waited in vain for: $*" >&2
    exit 1
}

hostname head
mount --bind "$lab/etc/hosts" /etc/hosts
ip link set lo up
ip link add br0 type bridge forward_delay 0 # the nodes' cables end here; nothing leads out
ip address add "$subnet.1/24" dev br0
ip link set br0 up

# --force: it need not like who owns the folders above, as this key opens nothing but the lab.
munged --force --num-threads=2 --key-file="$lab/etc/munge.key" --socket="$lab/munge/socket" \
    --pid-file="$lab/munge/pid" --seed-file="$lab/munge/seed" --log-file="$lab/munge/log"

# The data base listens on a socket only, and lives in memory: it ends with the lab, and disks are slow.
mount -t tmpfs none "$lab/db"
mkdir "$lab/db/data" "$lab/db/tmp"
export TMPDIR=$lab/db/tmp # it names temporary files by its process number, which those of other labs have too
database=(--no-defaults --datadir="$lab/db/data" --innodb-log-file-size=8M --user=root)
mariadb-install-db "${database[@]}" --auth-root-authentication-method=normal --skip-test-db >"$log/mariadb.log" 2>&1
mariadbd "${database[@]}" --skip-networking --socket="$run/db.sock" --pid-file="$run/mariadbd.pid" --skip-log-bin \
    --innodb-buffer-pool-size=48M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 \
    --performance-schema=OFF >>"$log/mariadb.log" 2>&1 &
wait_until test -S "$run/db.sock"

MYSQL_UNIX_PORT=$run/db.sock slurmdbd -D &
wait_until timeout 5 sacctmgr -n list cluster
timeout 20 sacctmgr -i add cluster lab >/dev/null

slurmctld -D &
wait_until timeout 5 scontrol ping
touch "$run/head.ready"

# This shell stays: as the first process, it must collect orphans that end.
sleep infinity
