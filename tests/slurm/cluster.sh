#!/usr/bin/env bash
# A SLURM of two nodes for tests, on the loopback only: all of it, its keys too, lies in one folder.
#
#   cluster.sh start FOLDER [MAX_TIME [PROGRAMS...]]
#   cluster.sh in FOLDER COMMAND...
#   cluster.sh as FOLDER USER COMMAND...
#   cluster.sh off FOLDER NODE      all of its processes are killed at once, and nobody is told
#   cluster.sh on FOLDER NODE
#   cluster.sh stop FOLDER
#
# Its processes see FOLDER in the place of /etc/slurm, and no others do. SLURM_CONF would be simpler, but Snakemake's
# plugin does not hand it on to `srun`. They know two more users, too, ann and bob, who can read the folders PROGRAMS even
# if these lie in a folder that is closed to them, such as /root, of which they see nothing else.
#
# Both nodes are this machine, under the names first and second: what runs on one of them sees its name. They promise
# more cores than there are, in two partitions, `cpu` and `gpu`, of MAX_TIME (1-00:00:00) each.
# Nothing is confined, as that takes cgroups, which containers rarely have: SLURM looks at the memory of jobs every
# second, and ends those that have too much.
set -euo pipefail

action=$1
folder=$(realpath -m "$2")
shift 2
nodes=(first second)
if [ "$action" != inside ]; then
    unset SLURM_CONF
    mkdir -p "$folder"
    if [ "$action" = start ]; then printf '%s\n' "${@:2}" >"$folder/programs"; fi
    exec unshare --mount "$0" inside "$folder" "$action" "$@"
fi
if [ ! -e "$folder/passwd" ]; then
    (cat /etc/passwd && printf '%s::%d:%d::/nonexistent:/bin/sh\n' ann 64001 64001 bob 64002 64002) >"$folder/passwd"
    (cat /etc/group && printf '%s::%d:\n' ann 64001 bob 64002) >"$folder/group"
fi
closed_above() { # the first of the folders above a path that is closed to others; fails if there is none
    local path=$1 found=
    while path=$(dirname "$path") && [ "$path" != / ]; do
        [ $((0$(stat --format=%a "$path") & 1)) = 1 ] || found=$path
    done
    [ -n "$found" ] && echo "$found"
}

open_up() {
    local paths=() closed path
    for path in "$@"; do
        [ -n "$path" ] || continue # there is none
        closed_above "$path" >/dev/null || continue
        mkdir -p "$folder/opened/${#paths[@]}"
        mount --bind "$path" "$folder/opened/${#paths[@]}"
        paths+=("$path")
    done
    for path in "${!paths[@]}"; do
        if closed=$(closed_above "${paths[path]}"); then mount --types tmpfs --options mode=755 tmpfs "$closed"; fi
        mkdir -p "${paths[path]}"
        mount --bind "$folder/opened/$path" "${paths[path]}"
    done
}

mapfile -t programs <"$folder/programs"
open_up "${programs[@]}"
mount --bind "$folder" /etc/slurm
mount --bind "$folder/passwd" /etc/passwd
mount --bind "$folder/group" /etc/group
action=$1
shift

alive() { kill -0 "$(cat "$folder/$1.pid" 2>/dev/null)" 2>/dev/null; }

within() { # within SECONDS COMMAND...: until it succeeds
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $until ]; then
            echo "the cluster does not come up: '$*' failed, see $folder/*.log" >&2
            exit 1
        fi
        sleep 0.2
    done
}

stop() {
    if alive slurmctld; then
        squeue --noheader --format=%A | xargs --no-run-if-empty scancel || true
        for _ in $(seq 50); do
            [ -n "$(squeue --noheader --states=running,completing)" ] || break
            sleep 0.2
        done
    fi
    for daemon in "${nodes[@]/#/slurmd.}" slurmctld munged; do
        if alive $daemon; then
            kill "$(cat "$folder/$daemon.pid")"
            for _ in $(seq 100); do
                alive $daemon || break
                sleep 0.1
            done
        fi
    done
}

on() { unshare --uts bash -c 'hostname "$1" && slurmd' slurmd "$1"; }

off() {
    local file=$folder/slurmd.$1.pid
    pkill -KILL --ns "$(cat "$file")" --nslist uts
    rm "$file"
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() {
    local max_time=${1:-1-00:00:00}
    trap stop EXIT # unless all of it comes up
    # munged serves nobody whose folders others may write to
    install -d -m 755 "$folder" "$folder/state" "$folder/spool"
    install -d -m 700 "$folder/key"
    (umask 077 && head -c 1024 /dev/urandom >"$folder/key/munge.key")
    cat >"$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,sched_min_interval=0
MpiDefault=none
MinJobAge=3600
ReturnToService=2
KillWait=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
NodeName=DEFAULT CPUs=8 RealMemory=16000 State=UNKNOWN
$(for node in "${nodes[@]}"; do echo "NodeName=$node NodeAddr=127.0.0.1 Port=$(free_port)"; done)
PartitionName=cpu Nodes=ALL Default=YES MaxTime=$max_time State=UP
PartitionName=gpu Nodes=ALL MaxTime=$max_time State=UP
CONF
    munged --key-file="$folder/key/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --seed-file="$folder/key/seed" --log-file="$folder/munged.log"
    slurmctld
    within 30 scontrol ping
    for node in "${nodes[@]}"; do on "$node"; done
    within 30 bash -c '[ "$(sinfo --noheader --partition=cpu --states=idle --format=%D)" = 2 ]'
    trap - EXIT
}

case $action in
    start | stop | on | off) $action "$@" ;;
    in) exec "$@" ;;
    as) exec setpriv --reuid="$1" --regid="$1" --clear-groups "${@:2}" ;;
    *) echo "got '$action', expected start, in, as, off, on or stop" >&2 && exit 2 ;;
esac
