#!/usr/bin/env bash
# Install the Debian packages of the lab: bash slurm/lab/install.sh. Instant when they are there. None of their daemons
# is started, now or by the next boot of the machine.
set -euo pipefail

packages=(
    slurm-wlm munge iproute2
    # sacct needs a data base
    slurmdbd slurm-wlm-mysql-plugin mariadb-server-core mariadb-client-core
)
commands=(munged slurmctld slurmd slurmdbd sbatch sacctmgr mariadbd mariadb-install-db ip unshare nsenter)

missing=()
for command in "${commands[@]}"; do
    command -v "$command" >/dev/null || missing+=("$command")
done
[ ${#missing[@]} != 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "lab: not installed: ${missing[*]}; run as root: apt-get install --no-install-recommends ${packages[*]}" >&2
    exit 1
fi
echo "lab: installing ${packages[*]} (once)"

# Two at a time would take each other's policy for the machine's.
exec 9>/run/lock/hpcdeq-lab-install
flock 9

# Debian asks this file before it starts a daemon of a package.
policy=/usr/sbin/policy-rc.d
restore() {
    rm -f "$policy"
    [ ! -e "$policy.hpcdeq" ] || mv "$policy.hpcdeq" "$policy"
}
[ ! -e "$policy" ] || mv "$policy" "$policy.hpcdeq"
trap restore EXIT
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

log=$(mktemp)
get() { DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1; }
if ! get install --no-install-recommends "${packages[@]}"; then
    # As a rule the package lists are missing or old.
    if ! { get update && get install --no-install-recommends "${packages[@]}"; }; then
        cat "$log" >&2
        exit 1
    fi
fi
rm -f "$log"
