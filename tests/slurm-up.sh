#!/usr/bin/env bash
# slurm-up.sh - a REAL multi-node Slurm (slurmctld + N x slurmd + munged) on one
# Linux box, for tests.  Root needed; no systemd, no tty, no internet, nothing
# written outside DIR (apart from two kernel network namespaces that vanish with
# the processes that hold them).
#
#   slurm-up.sh install                     apt-get the Debian packages
#   slurm-up.sh up   [DIR]                  start (DIR default: mktemp); prints DIR last
#   slurm-up.sh env  DIR                    print `export ...` lines to eval
#   slurm-up.sh status DIR                  daemons and nodes
#   slurm-up.sh kill-node  DIR NODE         power-cut a node: SIGKILL every process on it
#   slurm-up.sh start-node DIR NODE         boot it again
#   slurm-up.sh cut-net | join-net DIR NODE unplug / replug its network cable (netns mode)
#   slurm-up.sh exec DIR NODE CMD...        run CMD inside a node's namespaces
#   slurm-up.sh down DIR [--keep]           stop everything by recorded PID, remove DIR
#
# Environment read by `up`:
#   NODES=2 CPUS=4 GPUS=2 MEM=8000   per node; CPUS and GPUS may exceed what is real
#   MODE=auto|netns|ns|plain         netns: own network+hostname+pids+/dev/shm per node
#                                    ns:    own hostname+pids+/dev/shm, shared loopback
#                                    plain: no namespaces (slurmd -N only)
#   KILLWAIT=5 GRACE=10 CRED_EXPIRE=5 SLURMD_TIMEOUT=10   (Slurm defaults 30/0/120/300)
#   SLURM_CONF_EXTRA='Line=...'      appended to slurm.conf
# shellcheck disable=SC1091,SC2046,SC2155
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

die() { echo "slurm-up: $*" >&2; exit 1; }

# Process book-keeping: DIR/pids/NAME holds "PID STARTTIME"
starttime() { sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
record() { echo "$2 $(starttime "$2")" >"$DIR/pids/$1"; }
alive() { # NAME -> prints pid if the recorded process (same start time) still runs
    local p s; { read -r p s <"$DIR/pids/$1"; } 2>/dev/null || return 1
    [ -n "$s" ] && [ "$(starttime "$p" || true)" = "$s" ] || return 1
    case "$(sed 's/^.*) //' "/proc/$p/stat" 2>/dev/null | cut -c1)" in Z|X|'') return 1;; esac
    echo "$p"
}
stop() { # NAME SIGNAL [seconds before SIGKILL]
    local p i; p=$(alive "$1") || { rm -f "$DIR/pids/$1"; return 0; }
    kill "-$2" "$p" 2>/dev/null || true
    for ((i = 0; i < ${3:-5} * 20; i++)); do alive "$1" >/dev/null || break; sleep 0.05; done
    if alive "$1" >/dev/null; then kill -KILL "$p" 2>/dev/null || true; sleep 0.1; fi
    rm -f "$DIR/pids/$1"
}
bg() { # NAME CMD...   detached, no tty, no inherited stdin/stdout
    local n=$1; shift
    setsid "$@" </dev/null >"$DIR/log/$n.out" 2>&1 &
    record "$n" $!
}
free_port() { python3 -c 'import socket; s=socket.socket(); s.bind(("",0)); print(s.getsockname()[1])'; }

# proctrack/linuxproc walks the parent chain, so a process whose parent died (say a
# worker of a killed launcher) would escape scancel and leave the job COMPLETING.
# Making slurmstepd a child subreaper keeps such orphans below it, as cgroups would.
stepd_wrapper() {
    local real; real=$(slurmd_real_stepd) || return 0
    cat >"$DIR/etc/slurmstepd" <<P
#!/usr/bin/perl
use POSIX;
my %nr = (x86_64 => 157, aarch64 => 167);            # prctl(PR_SET_CHILD_SUBREAPER, 1)
syscall(\$nr{(POSIX::uname())[4]}, 36, 1, 0, 0, 0);
exec { "$real" } "$real", @ARGV or die "exec $real: \$!";
P
    chmod 755 "$DIR/etc/slurmstepd"
}
slurmd_real_stepd() { local f; for f in /usr/sbin/slurmstepd /usr/local/sbin/slurmstepd; do [ -x $f ] && echo $f && return; done; return 1; }
stepd_opt() { if [ -x "$DIR/etc/slurmstepd" ] && [ -x /usr/bin/perl ]; then echo "-d $DIR/etc/slurmstepd"; fi; }

# Nodes.
node_init() { # runs as PID 1 of the node (netns/ns modes)
    local node=$2 addr=$3 mode=$4 i
    hostname "$node"
    mount --bind "$DIR/etc/hosts" /etc/hosts
    mount -t tmpfs -o size=1g,mode=1777 shm /dev/shm
    if [ "$mode" = netns ]; then
        ip link set lo up
        for ((i = 0; i < 200; i++)); do ip link show eth0 >/dev/null 2>&1 && break; sleep 0.02; done
        ip addr add "$addr/24" dev eth0
        ip link set eth0 up
    fi
    local pid
    slurmd -D -N "$node" -f "$DIR/etc/slurm.conf" $(stepd_opt) &
    pid=$!
    trap 'kill -TERM $pid 2>/dev/null' TERM INT
    # bash reaps the orphans that slurmstepd's double forks leave to PID 1
    while kill -0 $pid 2>/dev/null; do wait $pid || true; done
}
start_node() {
    local n=$1 i=${1#node} mode addr p
    . "$DIR/vars"
    mode=$MODE addr=$(node_addr "$i")
    alive "$n" >/dev/null && die "$n already runs"
    mkdir -p "$DIR/spool/$n"
    case $mode in
    plain) bg "$n" slurmd -D -N "$n" -f "$DIR/etc/slurm.conf" $(stepd_opt) ;;
    ns)    bg "$n" unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc \
               "$SELF" _init "$DIR" "$n" "$addr" ns ;;
    netns) bg "$n" unshare --net --mount --uts --ipc --pid --fork --kill-child --mount-proc \
               "$SELF" _init "$DIR" "$n" "$addr" netns
        p=$(alive "$n") || die "$n died: $(cat "$DIR/log/$n.out")"
        local sw=$(alive switch) k
        for ((k = 0; k < 100; k++)); do
            [ "$(readlink "/proc/$p/ns/net")" != "$(readlink /proc/self/ns/net)" ] && break; sleep 0.02
        done
        nsenter -t "$sw" -n ip link add "p-$n" type veth peer name eth0 netns "$p"
        nsenter -t "$sw" -n ip link set "p-$n" master br0 up ;;
    esac
}
node_addr() { if [ "$MODE" = netns ]; then echo "$SUBNET.$((10 + $1))"; else echo 127.0.0.1; fi; }
node_init_pid() { # host pid of a node's PID 1
    local p; p=$(alive "$1") || return 1
    tr ' ' '\n' <"/proc/$p/task/$p/children" | head -1
}

node_procs() { # pids of slurmstepds and tasks of a node of THIS cluster (for plain mode)
    local d
    for d in /proc/[0-9]*; do
        if { tr '\0' '\n' <"$d/environ" | grep -qx "SLURMD_NODENAME=$1" &&
             tr '\0' '\n' <"$d/environ" | grep -qx "SLURM_CONF=$DIR/etc/slurm.conf"; } 2>/dev/null ||
           find "$d/fd" -lname "$DIR/log/slurmd-$1.log" 2>/dev/null | grep -q .; then echo "${d#/proc/}"; fi
    done
}
kill_node() { # power-cut
    local p m; m=$(. "$DIR/vars"; echo "$MODE")
    # netns/ns: SIGKILL on unshare kills the node's PID 1 (--kill-child) and the
    # kernel then kills every process in that pid namespace
    stop "$1" KILL 3
    if [ "$m" = plain ]; then for p in $(node_procs "$1"); do kill -KILL "$p" 2>/dev/null || true; done; fi
}

wait_nodes() { # until every node is idle/mix/alloc
    local want=$1 i
    for ((i = 0; i < 300; i++)); do
        [ "$(sinfo -h -N -p main -t idle,mix,alloc -o %N 2>/dev/null | wc -l)" -ge "$want" ] && return 0
        alive slurmctld >/dev/null || break
        sleep 0.1
    done
    cat "$DIR/log/slurmctld.out" >&2; sinfo -N -l >&2 || true; tail -n 20 "$DIR"/log/*.log >&2; return 1
}

pick_mode() {
    if ! unshare --mount --uts --ipc --pid --fork --mount-proc true 2>/dev/null; then echo plain; return; fi
    if command -v ip >/dev/null && unshare --net sh -c 'ip link add name vx0 type veth peer name vx1 && ip link add name br0 type bridge' 2>/dev/null
    then echo netns; else echo ns; fi
}

up() {
    [ "$(id -u)" = 0 ] || die "must be root"
    for c in munged slurmctld slurmd sbatch scontrol; do command -v $c >/dev/null || die "$c missing: run '$0 install'"; done
    : "${NODES:=2}" "${CPUS:=4}" "${GPUS:=2}" "${MEM:=8000}" "${KILLWAIT:=5}" "${GRACE:=10}" \
      "${CRED_EXPIRE:=5}" "${SLURMD_TIMEOUT:=10}" "${MODE:=auto}"
    if [ -n "${1:-}" ]; then DIR=$1; mkdir -p "$DIR"; else DIR=$(mktemp -d /tmp/slurm-XXXXXX); fi
    DIR=$(realpath "$DIR"); chmod 755 "$DIR"
    [ ${#DIR} -le 70 ] || die "DIR too long for unix sockets (${#DIR} > 70): $DIR"
    [ -e "$DIR/vars" ] && die "$DIR already holds a cluster"
    [ "$MODE" = auto ] && MODE=$(pick_mode)
    mkdir -p "$DIR"/{etc,log,pids,state,spool,dev}
    mkdir -m 700 "$DIR/munge"; mkdir -m 755 "$DIR/sock"
    local host ctlport i n; host=$(hostname -s); ctlport=$(free_port)
    local ctladdr=127.0.0.1 SUBNET=
    trap 'echo "slurm-up: failed; stopping what was started (logs stay in $DIR)" >&2; down --keep || true' EXIT

    if [ "$MODE" = netns ]; then
        # an own namespace is the switch (so host iptables/br_netfilter cannot interfere)
        local o k
        for ((k = 0; k < 200; k++)); do
            o=$((RANDOM % 256)); SUBNET=10.$((200 + RANDOM % 50)).$o
            ip -4 -o addr | grep -q " $SUBNET\." || break
        done
        ctladdr=$SUBNET.1
        bg switch unshare --net sleep infinity
        local sw; sw=$(alive switch)
        for ((k = 0; k < 100; k++)); do
            [ "$(readlink "/proc/$sw/ns/net")" != "$(readlink /proc/self/ns/net)" ] && break; sleep 0.02
        done
        nsenter -t "$sw" -n ip link add br0 type bridge
        nsenter -t "$sw" -n ip link set br0 up
        ip link add "slurm$$" type veth peer name head netns "$sw"
        nsenter -t "$sw" -n ip link set head master br0 up
        ip addr add "$ctladdr/24" dev "slurm$$"
        ip link set "slurm$$" up
    fi
    { echo "MODE=$MODE"; echo "SUBNET=$SUBNET"; echo "NODES=$NODES"; echo "NIC=slurm$$"; } >"$DIR/vars"

    head -c 1024 /dev/urandom >"$DIR/munge/key"; chmod 600 "$DIR/munge/key"
    bg munged munged --foreground --key-file="$DIR/munge/key" --socket="$DIR/sock/munge" \
        --pid-file="$DIR/munge/pid" --log-file="$DIR/munge/log" --seed-file="$DIR/munge/seed" --num-threads=2

    { echo "127.0.0.1 localhost"; [ "$MODE" = netns ] && echo "$ctladdr $host" || echo "127.0.0.1 $host"
      for ((i = 1; i <= NODES; i++)); do echo "$(node_addr $i) node$i"; done
      # torch's c10d looks up IPv4-mapped peers
      [ "$MODE" = netns ] && for ((i = 1; i <= NODES; i++)); do echo "::ffff:$(node_addr $i) node$i"; done; true; } >"$DIR/etc/hosts"

    cat >"$DIR/etc/slurm.conf" <<C
ClusterName=lab
SlurmctldHost=$host($ctladdr)
SlurmctldPort=$ctlport
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$DIR/sock/munge,cred_expire=$CRED_EXPIRE
SlurmctldPidFile=$DIR/state/slurmctld.pid
SlurmdPidFile=$DIR/spool/%n/slurmd.pid
SlurmdSpoolDir=$DIR/spool/%n
StateSaveLocation=$DIR/state
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
MailProg=/bin/true
# no cgroups, no affinity: plain process tracking through /proc
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
# pretend CPUs/memory exist even though the machine has fewer
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
# preemption by partition priority, by requeue
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
EnforcePartLimits=ANY
# short clocks for tests
KillWait=$KILLWAIT
SlurmdTimeout=$SLURMD_TIMEOUT
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2,requeue_setup_env_fail
# no slurmdbd: keep finished jobs visible to scontrol/squeue, and log completions
MinJobAge=3600
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobcomp.log
C
    local gres=; [ "$GPUS" -gt 0 ] && gres="Gres=gpu:$GPUS"
    for ((i = 1; i <= NODES; i++)); do
        local port=
        if [ "$MODE" = netns ]; then n="NodeHostname=node$i"
        elif [ "$MODE" = ns ]; then n="NodeHostname=node$i"; port="Port=$(free_port)"
        else n="NodeHostname=$host"; port="Port=$(free_port)"; fi
        echo "NodeName=node$i $n NodeAddr=$(node_addr $i) $port CPUs=$CPUS RealMemory=$MEM $gres State=UNKNOWN" >>"$DIR/etc/slurm.conf"
    done
    cat >>"$DIR/etc/slurm.conf" <<C
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 MaxTime=INFINITE DefaultTime=10 PreemptMode=OFF State=UP
PartitionName=low  Nodes=ALL Default=NO  PriorityTier=1  MaxTime=INFINITE DefaultTime=10 PreemptMode=REQUEUE GraceTime=$GRACE State=UP
${SLURM_CONF_EXTRA:-}
C
    # Debian 12's 22.05 has no CgroupPlugin=disabled; cgroup/v1 is inert when nothing uses it
    # (newer Slurm has it - that branch is untested here)
    local ver; ver=$(slurmctld -V | sed 's/[^0-9]*\([0-9]*\)\.\([0-9]*\).*/\1\2/')
    if [ "$ver" -ge 2311 ]; then echo "CgroupPlugin=disabled"; else echo "CgroupPlugin=cgroup/v1"; fi >"$DIR/etc/cgroup.conf"
    : >"$DIR/etc/gres.conf"
    if [ "$GPUS" -gt 0 ]; then
        # gres/gpu drops entries with no File, and wants device nodes: clones of /dev/null,
        # or (no CAP_MKNOD) harmless devices that every container has
        local spare=(null zero full random urandom tty) nodes="node[1-$NODES]" f
        [ "$NODES" = 1 ] && nodes=node1
        for ((i = 0; i < GPUS; i++)); do
            if mknod "$DIR/dev/nvidia$i" c 1 3 2>/dev/null; then f=$DIR/dev/nvidia$i
            else f=/dev/${spare[i]:?too many fake GPUs without CAP_MKNOD}; fi
            echo "NodeName=$nodes Name=gpu File=$f" >>"$DIR/etc/gres.conf"
        done
    fi
    export SLURM_CONF=$DIR/etc/slurm.conf

    stepd_wrapper
    for ((i = 0; i < 100; i++)); do [ -S "$DIR/sock/munge" ] && break; sleep 0.02; done
    bg slurmctld slurmctld -D -f "$SLURM_CONF"
    for ((i = 1; i <= NODES; i++)); do start_node "node$i"; done
    wait_nodes "$NODES"
    trap - EXIT
    echo "Slurm $(slurmctld -V | cut -d' ' -f2), mode $MODE: $NODES nodes x $CPUS CPUs x $GPUS GPUs, partitions main, low" >&2
    echo "  eval \"\$($0 env $DIR)\"; sbatch job.sh; squeue; scontrol show job ID; ...; $0 down $DIR" >&2
    echo "$DIR"
}

down() {
    local f n i
    export SLURM_CONF=$DIR/etc/slurm.conf
    # let Slurm end the jobs itself, then cut power
    if alive slurmctld >/dev/null && [ "${1:-}" != --keep ]; then
        timeout 5 scancel -f --user="$(id -un)" 2>/dev/null || true
        for ((i = 0; i < 40; i++)); do
            [ -z "$(timeout 5 squeue -h -t R,CG,CF,S,ST 2>/dev/null)" ] && break; sleep 0.1
        done
    fi
    for f in "$DIR"/pids/node*; do
        [ -e "$f" ] || continue; n=${f##*/}
        kill_node "$n"
    done
    stop slurmctld TERM 5
    stop munged TERM 3
    stop switch KILL 3
    n=$(. "$DIR/vars"; echo "${NIC:-}") # goes with the switch's namespace, but asynchronously
    [ -n "$n" ] && { ip link del "$n" 2>/dev/null || true; }
    [ "${1:-}" = --keep ] || [ "${2:-}" = --keep ] || rm -rf "$DIR"
}

SELF=$(realpath "$0")
cmd=${1:-}; shift || true
case $cmd in
install)
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge iproute2 util-linux ;;
up) up "$@" ;;
_init) DIR=$1; node_init "$@" ;;
env|status|kill-node|start-node|cut-net|join-net|exec|down)
    DIR=$(realpath "${1:?DIR}"); shift; [ -e "$DIR/vars" ] || die "no cluster in $DIR"
    export SLURM_CONF=$DIR/etc/slurm.conf
    case $cmd in
    env) echo "export SLURM_CONF=$SLURM_CONF" ;;
    status) for f in "$DIR"/pids/*; do echo "${f##*/} pid $(alive "${f##*/}" || echo DEAD)"; done; sinfo -N -l ;;
    kill-node) kill_node "$1" ;;
    start-node) start_node "$1" ;;
    cut-net) nsenter -t "$(alive switch)" -n ip link set "p-$1" down ;;
    join-net) nsenter -t "$(alive switch)" -n ip link set "p-$1" up ;;
    exec) n=$1; shift; p=$(node_init_pid "$n"); exec nsenter -t "$p" -m -u -i -n -p "$@" ;;
    down) down "$@" ;;
    esac ;;
*) sed -n '2,/^set -e/p' "$0" | sed '$d'; exit 2 ;;
esac
