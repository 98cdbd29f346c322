# shellcheck shell=bash
# What the scripts of slurm/ and those of `job submit` share. They set the variables, source or contain this, and call main.
#
# In:  COMMAND, or MODEL, TENSOR_PARALLEL_SIZE, DATASET, OUTPUT, OPTIONS, of which it is made; CONTAINER, MAX_REQUEUES,
#      activate(); main's arguments are more options of `job run`; they win.
# Out: the exit code of `job run`. If it was stopped on request (75), or failed because the Hub or a store did not answer
#      (1), the job goes back into the queue first.
#
# slurm/README.md explains each line.

say() { printf 'slurm %(%T)T: %s\n' -1 "$*" >&2; }

# Every task runs inside this. srun returns the largest code of its tasks, so the 75 of the tasks that
# --kill-on-bad-exit stops would hide another task's 1, 2, 3 or 4: on the way through srun these become 77 to 80.
# Between them is 76, for a 1 that may be a 0 later, because the Hub or a store did not answer: `job run` itself exits
# with it.
# A signal that arrives before Python handles it kills the task (128 + USR1 or TERM): that is a stop on request, too.
# shellcheck disable=SC2016
TASK='
trap : TERM USR1
JOB_EXIT_UNAVAILABLE=76 "$@"
code=$?
case $code in
1 | 2 | 3 | 4) code=$((code + 76)) ;;
138 | 143) code=75 ;;
esac
exit $code
'

prepare() {
    # Only a script sets an array; a variable of that name in the environment is somebody else's.
    if [[ $(declare -p COMMAND 2>/dev/null) != "declare -a"* ]]; then
        COMMAND=(job run --model "$MODEL" --tensor-parallel-size "$TENSOR_PARALLEL_SIZE" --dataset "$DATASET")
        COMMAND+=(--output "$OUTPUT" ${OPTIONS[@]+"${OPTIONS[@]}"})
    fi
    activate || { say "activate, in the top block of the script, failed"; exit 2; }
    if [ ${#CONTAINER[@]} = 0 ] && ! command -v "${COMMAND[0]}" >/dev/null; then
        say "the command '${COMMAND[0]}' is missing after activate, in the top block of the script"
        exit 2
    fi
    export HF_HUB_OFFLINE=${HF_HUB_OFFLINE-1}
    export HF_DATASETS_OFFLINE=${HF_DATASETS_OFFLINE-$HF_HUB_OFFLINE}
    export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
}

run_tasks() {
    local code
    srun --kill-on-bad-exit=1 --export=ALL ${CONTAINER[@]+"${CONTAINER[@]}"} bash -c "$TASK" task "${COMMAND[@]}" "$@"
    code=$?
    case $code in 77 | 78 | 79 | 80) code=$((code - 76)) ;; esac
    return $code
}

# Slurm sends the batch shell a TERM after scancel, at the time limit, and when it requeues the job itself. Only at the
# time limit is there something left to do.
slurm_has_decided() {
    [ "$got_term" = 1 ] && ! scontrol show job "$job_id" | grep -q 'Reason=TimeLimit'
}

requeue() { # WHAT HAPPENED
    local refusal code
    if [ "$num_restarts" -ge "$MAX_REQUEUES" ]; then
        say "$1, and restarted $num_restarts times already (MAX_REQUEUES). Nothing is lost: submit it" \
            "again to continue"
        return
    fi
    refusal=$(scontrol requeue "$job_id" 2>&1)
    code=$?
    if [ $code != 0 ] && [ $code != 143 ]; then # 143: the requeue ended scontrol before it could say so
        say "$1, and this site refuses a requeue (${refusal##*: }). Nothing is lost: submit it" \
            "again to continue"
        return
    fi
    say "$1, and requeued: restart $((num_restarts + 1)) of at most $MAX_REQUEUES"
    trap - TERM
    sleep 300 # the requeue kills this shell; if it ended by itself, the two would race
}

main() {
    local code what=
    say "job $job_id on $SLURM_JOB_NODELIST, restart $num_restarts of at most $MAX_REQUEUES"
    if [ "$num_restarts" -gt "$MAX_REQUEUES" ]; then
        requeue stopped
        exit 75
    fi
    prepare
    got_term=0
    trap 'got_term=1' TERM # bash runs the trap only after srun has returned, so the tasks have their time to stop
    run_tasks "$@"
    code=$?
    case $code in
    75) what=stopped ;;
    76) what="the Hub or a store did not answer" code=1 ;;
    esac
    say "job run ended with exit code $code"
    if [ -n "$what" ] && ! slurm_has_decided; then requeue "$what"; fi
    exit $code
}

# The SLURM_JOB_ID of an array's last task is the id of the whole array: only this form names one task.
job_id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job_id=${job_id:-$SLURM_JOB_ID}
num_restarts=${SLURM_RESTART_COUNT:-0}
