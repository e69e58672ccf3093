#!/usr/bin/env bash
# A SLURM of one node for tests, on the loopback only: all of it, its keys too, lies in one folder.
#
#   cluster.sh start FOLDER [MAX_TIME]
#   cluster.sh in FOLDER COMMAND...
#   cluster.sh stop FOLDER
#
# Its processes see FOLDER in the place of /etc/slurm, and no others do. SLURM_CONF would be simpler, but Snakemake's
# plugin does not hand it on to `srun`.
#
# It promises more cores than there are, and has two partitions, `cpu` and `gpu`, of MAX_TIME (1-00:00:00) each.
# Nothing is confined, as that takes cgroups, which containers rarely have: SLURM looks at the memory of jobs every
# second, and ends those that have too much.
set -euo pipefail

action=$1
folder=$(realpath -m "$2")
shift 2
node=$(hostname -s)
if [ "$action" != inside ]; then
    unset SLURM_CONF
    exec unshare --mount "$0" inside "$folder" "$action" "$@"
fi
mkdir -p "$folder"
mount --bind "$folder" /etc/slurm
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
        scancel --user="$(id -un)" || true
        for _ in $(seq 50); do
            [ -n "$(squeue --noheader --states=running,completing)" ] || break
            sleep 0.2
        done
    fi
    for daemon in slurmd slurmctld munged; do
        if alive $daemon; then
            kill "$(cat "$folder/$daemon.pid")"
            for _ in $(seq 100); do
                alive $daemon || break
                sleep 0.1
            done
        fi
    done
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
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
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
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$node NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000 State=UNKNOWN
PartitionName=cpu Nodes=$node Default=YES MaxTime=$max_time State=UP
PartitionName=gpu Nodes=$node MaxTime=$max_time State=UP
CONF
    munged --key-file="$folder/key/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --seed-file="$folder/key/seed" --log-file="$folder/munged.log"
    slurmctld
    within 30 scontrol ping
    slurmd
    within 30 bash -c "sinfo --noheader --format=%t | grep -qx idle"
    trap - EXIT
}

case $action in
    start | stop) $action "$@" ;;
    in) exec "$@" ;;
    *) echo "got '$action', expected start, in or stop" >&2 && exit 2 ;;
esac
