# shellcheck shell=bash
# A machine made of namespaces: own network, hostname, processes, mounts and shared memory; the disk is that of the host.
# Its first process is its life: when that ends, the kernel ends all others. Sourced by lab.sh.

lab=${HPCDEQ_LAB_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/hpcdeq/lab}
lab=$(realpath -m "$lab")

# The wrappers are for users: in these scripts SLURM's commands are SLURM's own.
PATH=:$PATH:
PATH=${PATH//:$lab\/bin:/:}
PATH=${PATH#:}
export PATH=${PATH%:}

say() { echo "lab: $*"; }

die() {
    echo "lab: $*" >&2
    exit 1
}

cannot() {
    echo "lab: $*" >&2
    exit 77
}

wait_for() { # SECONDS WHAT COMMAND...
    local seconds=$1 what=$2 end=$((SECONDS + $1))
    shift 2
    until "$@"; do
        [ $SECONDS -lt $end ] || die "waited $seconds s in vain for $what (logs in $lab/log)"
        sleep 0.05
    done
}

# When a process began: with it, a number that another process has got since is not taken for ours. A dead process that
# nobody has collected yet has none.
birth_of() { # PID
    local stat
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    stat=${stat##*) } # the name of the command, before it, may hold anything
    read -ra stat <<<"$stat"
    [ "${stat[0]}" != Z ] && [ "${stat[0]}" != X ] && echo "${stat[19]}"
}

machine_pid() { # NAME: its first process, if it is alive
    local pid birth
    { read -r pid birth <"$lab/run/$1.pid"; } 2>/dev/null || return 1
    [ "$(birth_of "$pid")" = "$birth" ] && echo "$pid"
}

machine_boot() { # NAME SCRIPT ARGUMENT...
    local name=$1 outer pid='' tries
    shift
    # A clean environment: jobs must not inherit that of whoever starts the lab.
    setsid unshare --net --uts --mount --ipc --pid --fork --kill-child --mount-proc --propagation slave \
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
        bash "$@" </dev/null >>"$lab/log/$name.out" 2>&1 9>&- &
    outer=$!
    for ((tries = 0; tries < 200; tries++)); do
        pid=$(cat "/proc/$outer/task/$outer/children" 2>/dev/null) || break
        pid=${pid// /}
        [ -z "$pid" ] || break
        sleep 0.02
    done
    [ -n "$pid" ] || die "$name did not start: $(tail -n 3 "$lab/log/$name.out")"
    echo "$pid $(birth_of "$pid")" >"$lab/run/$name.pid"
}

machine_kill() { # NAME
    local pid
    if pid=$(machine_pid "$1"); then
        kill -KILL "$pid"
        wait_for 20 "the end of $1" eval "! machine_pid $1 >/dev/null"
    fi
    rm -f "$lab/run/$1.pid"
}

inside() { # NAME COMMAND...
    (exec_inside "$@")
}

exec_inside() { # NAME COMMAND...
    local pid
    pid=$(machine_pid "$1") || die "$1 is not running"
    shift
    exec nsenter --target "$pid" --net --uts --mount --ipc --pid "$@"
}

inside_network() { # NAME COMMAND...
    local pid
    pid=$(machine_pid "$1") || die "$1 is not running"
    shift
    nsenter --target "$pid" --net "$@"
}
