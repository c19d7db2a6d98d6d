#!/usr/bin/env bash
# A real SLURM cluster on one machine, to test hpcdeq on and to try it before the real one: see docs/slurm-lab.md.
#
#   bash slurm/lab/lab.sh up [NODES]            start a controller with accounting, and NODES compute nodes (3)
#   bash slurm/lab/lab.sh run COMMAND...        run a command whose sbatch, srun, sacct, ... reach the lab
#   bash slurm/lab/lab.sh node VERB NODE        crash | start | cut | heal | kill-slurmd | restart-slurmd
#   bash slurm/lab/lab.sh exec NODE COMMAND...  run a command on a node
#   bash slurm/lab/lab.sh down [--purge]        end everything; --purge also removes the lab's folder
#
# Needs root on Debian or Ubuntu. HPCDEQ_LAB_DIR: folder that holds all of a lab (default: ~/.cache/hpcdeq/lab); labs in
# different folders do not see each other. Exit codes: 0 done, 1 failed, 77 this machine cannot run a lab.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/lab/machine.sh
source "$here/machine.sh"

cpus=2      # of each node, whatever this machine has
subnet=198.18.77 # a range for tests (RFC 2544); it exists in the namespaces of each lab only
clients=(
    sacct sacctmgr salloc sattach sbatch sbcast scancel scontrol sdiag
    sinfo sprio squeue sreport srun sshare sstat strigger
)

main() {
    local verb=${1:-help}
    [ $# = 0 ] || shift
    case $verb in
        up) up "$@" ;;
        run) run "$@" ;;
        node) node "$@" ;;
        exec) on_node "$@" ;;
        down) down "$@" ;;
        help | --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" ;;
        *) die "there is no verb '$verb'; see: bash slurm/lab/lab.sh --help" ;;
    esac
}

# ---------------------------------------------------------------------------------------------------------------- up

up() {
    local nodes=${1:-3} began=$SECONDS
    [[ $nodes =~ ^[1-9][0-9]?$ ]] || die "NODES=$nodes is not possible: a number from 1 to 99"
    check_machine
    prepare_folder
    lock

    if machine_pid head >/dev/null; then
        [ "$(cat "$lab/nodes")" = "$nodes" ] ||
            die "a lab of $(cat "$lab/nodes") nodes is up in $lab; end it first: bash slurm/lab/lab.sh down"
        for ((i = 1; i <= nodes; i++)); do start_node "n$i"; done
        wait_for 60 "all $nodes nodes" nodes_are_up "$nodes"
        say "already up: $nodes nodes; source $lab/env.sh"
        return
    fi

    # Every cluster begins empty, with job 1: the remains of an earlier one would mix with its jobs.
    end_all
    rm -rf "${lab:?}"/{etc,run,log,bin,db,munge,state,spool}
    mkdir -p "$lab"/{etc,run,log,bin,db,munge,state,spool}
    echo "$nodes" >"$lab/nodes"
    trap give_up EXIT # until it stands
    write_configuration "$nodes"
    write_clients
    machine_boot head "$here/head.sh" "$lab" "$subnet"
    wait_for 60 "the controller" head_is_up
    for ((i = 1; i <= nodes; i++)); do start_node "n$i"; done
    wait_for 60 "all $nodes nodes" nodes_are_up "$nodes"
    trap - EXIT
    say "up in $((SECONDS - began)) s: $nodes nodes of $cpus CPUs; source $lab/env.sh"
}

# Say why this machine cannot run a lab, and leave with 77, or install what is missing.
check_machine() {
    [ "$(id -u)" = 0 ] || cannot "a lab needs root, for its namespaces and its daemons; use sudo"
    command -v apt-get >/dev/null || cannot "a lab needs Debian or Ubuntu: there is no apt-get here"
    unshare --net --uts --mount --ipc --pid --fork --mount-proc true 2>/dev/null ||
        cannot "this machine refuses new namespaces; in a container, it must be privileged"
    bash "$here/install.sh" || die "the packages could not be installed"
    unshare --net sh -c 'ip link add br0 type bridge && ip link add ve0 type veth peer name ve1' 2>/dev/null ||
        cannot "this kernel refuses bridges or virtual network cables (modules bridge, veth)"
}

prepare_folder() {
    # slurm.conf cannot quote, and the path of a socket has at most 107 characters.
    [[ $lab =~ ^/[A-Za-z0-9._/+-]{1,84}$ ]] ||
        die "HPCDEQ_LAB_DIR=$lab: must be a path of at most 85 letters, digits and ._/+-"
    [ ! -d "$lab" ] || [ -e "$lab/.hpcdeq-lab" ] || [ -z "$(ls -A "$lab")" ] ||
        die "HPCDEQ_LAB_DIR=$lab is a folder of something else; name an empty or a new one"
    mkdir -p "$lab"
    touch "$lab/.hpcdeq-lab"
}

write_configuration() { # NODES
    local file i
    for file in slurm.conf slurmdbd.conf; do
        # slurmdbd refuses a file that others can read.
        install -m 600 /dev/null "$lab/etc/$file"
        sed "s|@LAB@|$lab|g; s|@SUBNET@|$subnet|g" "$here/$file.in" >"$lab/etc/$file"
    done
    chmod 644 "$lab/etc/slurm.conf"
    install -m 644 "$here/cgroup.conf" "$lab/etc/cgroup.conf"
    install -m 755 "$here/epilog.sh" "$lab/etc/epilog.sh"
    for ((i = 1; i <= $1; i++)); do
        echo "NodeName=n$i NodeAddr=$(address "n$i") CPUs=$cpus RealMemory=4000"
    done >>"$lab/etc/slurm.conf"
    {
        echo "127.0.0.1 localhost"
        echo "$subnet.1 head"
        for ((i = 1; i <= $1; i++)); do echo "$(address "n$i") n$i"; done
    } >"$lab/etc/hosts"
    (umask 077 && head -c 1024 /dev/urandom >"$lab/etc/munge.key")
}

# Wrappers of SLURM's commands, which enter the network where its daemons are, and the file that puts them first.
write_clients() {
    local name path
    for name in "${clients[@]}"; do
        path=$(command -v "$name") || continue
        cat >"$lab/bin/$name" <<WRAPPER
#!/bin/sh
export SLURM_CONF=$lab/etc/slurm.conf
read -r pid _ 2>/dev/null <$lab/run/head.pid || { echo "$name: the lab in $lab is down" >&2; exit 1; }
exec nsenter --target "\$pid" --net --uts $path "\$@"
WRAPPER
        chmod 755 "$lab/bin/$name"
    done
    cat >"$lab/env.sh" <<ENVIRONMENT
# source this: SLURM's commands then reach the lab
export HPCDEQ_LAB_DIR=$lab
export SLURM_CONF=$lab/etc/slurm.conf
case ":\$PATH:" in *":$lab/bin:"*) ;; *) export PATH=$lab/bin:\$PATH ;; esac
ENVIRONMENT
}

head_is_up() {
    [ -e "$lab/run/head.ready" ] && return
    machine_pid head >/dev/null && return 1
    if grep -q "slurmdbd: fatal: _check_mysql_concat_is_sane" "$lab/log/head.out"; then # Debian 13: 24.11.5 and 11.8.9
        trap - EXIT
        end_all
        cannot "slurmdbd and MariaDB of this distribution do not understand each other: $(dpkg-query -W slurmdbd libmariadb3 | tr '\t\n' '  ')"
    fi
    die "the controller ended: $(tail -n 3 "$lab/log/head.out")"
}

nodes_are_up() { # NODES
    local found
    found=$(timeout 10 "$lab/bin/sinfo" -h -N -p main -t idle,alloc,mix,comp -o %N | sort -u | wc -l)
    [ "$found" = "$1" ]
}

give_up() {
    echo "lab: it did not come up; the ends of its logs in $lab/log:" >&2
    tail -n 20 "$lab"/log/* >&2 || true
    end_all
}

# -------------------------------------------------------------------------------------------------------------- nodes

node() { # VERB NODE
    local verb=${1:-} name=${2:-}
    check_node "$name"
    case $verb in
        start) start_node "$name" ;;
        crash) # as at a power cut: its peers hear nothing, not even that its connections closed
            cable "$name" down 2>/dev/null || true
            machine_kill "$name"
            ;;
        cut) cable "$name" down ;;
        heal) cable "$name" up ;;
        kill-slurmd) # its jobs go on
            inside "$name" bash "$here/node.sh" kill-slurmd "$lab" ;;
        restart-slurmd) inside "$name" bash "$here/node.sh" start-slurmd "$lab" ;;
        *) die "there is no verb 'node $verb'; there are: crash, start, cut, heal, kill-slurmd, restart-slurmd" ;;
    esac
}

on_node() { # NODE COMMAND...
    local name=${1:-}
    check_node "$name"
    shift
    SLURM_CONF=$lab/etc/slurm.conf exec_inside "$name" env -C "$PWD" "$@"
}

check_node() { # NODE
    [ -e "$lab/nodes" ] || die "there is no lab in $lab; start one: bash slurm/lab/lab.sh up"
    if ! [[ $1 =~ ^n[1-9][0-9]?$ ]] || [ "${1#n}" -gt "$(cat "$lab/nodes")" ]; then
        die "there is no node '$1'; there are n1 to n$(cat "$lab/nodes")"
    fi
}

start_node() { # NODE
    if machine_pid "$1" >/dev/null; then
        inside "$1" bash "$here/node.sh" start-slurmd "$lab"
        return
    fi
    # A real node boots for longer than SLURM needs to notice that it is down. This one is back at once, and SLURM would
    # believe that its jobs still run.
    [ ! -e "$lab/run/slurmd-$1.pid" ] ||
        SLURM_CONF=$lab/etc/slurm.conf inside head timeout 20 scontrol update "NodeName=$1" State=DOWN Reason=crashed
    machine_boot "$1" "$here/node.sh" boot "$lab" "$1" "$(address "$1")"
    # The cable, from a bridge of the controller. That of an earlier life may still be there.
    inside_network head ip link del "ve-$1" 2>/dev/null || true
    inside_network head ip link add "ve-$1" type veth peer name eth0 netns "$(machine_pid "$1")"
    inside_network head ip link set "ve-$1" master br0 up
}

cable() { inside_network head ip link set "ve-$1" "$2"; } # NODE up|down

address() { echo "$subnet.$((10 + ${1#n}))"; } # NODE

# ---------------------------------------------------------------------------------------------------- run, down, help

run() { # COMMAND...
    [ $# != 0 ] || die "run what? For example: bash slurm/lab/lab.sh run sinfo"
    machine_pid head >/dev/null || die "there is no lab up in $lab; start one: bash slurm/lab/lab.sh up"
    # shellcheck source=/dev/null
    source "$lab/env.sh"
    exec "$@"
}

down() { # [--purge]
    [ $# = 0 ] || [ "$1" = --purge ] || die "down takes --purge or nothing, not '$1'"
    if [ ! -e "$lab/.hpcdeq-lab" ]; then
        say "there is none in $lab"
        return
    fi
    lock
    end_all
    if [ "${1:-}" = --purge ]; then rm -rf "$lab"; fi
    say "down"
}

# Only what this lab started: the first process of a machine takes all others of it along.
end_all() {
    local file
    for file in "$lab"/run/n*.pid "$lab"/run/head.pid; do
        [ ! -e "$file" ] || machine_kill "$(basename "$file" .pid)"
    done
    rm -f "$lab/env.sh"
}

lock() { # until this script ends
    exec 9>"$lab/lock"
    flock -w 120 9 || die "another up or down is at work in $lab"
}

main "$@"
