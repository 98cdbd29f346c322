# shellcheck shell=bash
# What all forms of a launch have in common. The sbatch scripts set the variables, source this file and call main.
#
# In:  JOB_HOME, MODEL, TENSOR_PARALLEL_SIZE, DATASET, OUTPUT, OPTIONS, CONTAINER, MAX_REQUEUES, activate();
#      main's arguments are further options of `job run`, and win.
# Out: the exit code of `job run`. If that is 75 (stopped on request), the job goes back into the queue first.
#
# README.md, beside this file, says why each line is as it is.

say() { printf 'slurm %(%T)T: %s\n' -1 "$*" >&2; }

# Every task runs inside this. srun returns the largest code of its tasks, so a task's 1, 2 or 3 would be hidden by the
# 75 of those that --kill-on-bad-exit then stops: on its way through srun it becomes 76, 77 or 78. And a signal that
# comes before Python listens to it kills the task (128 + USR1 or TERM): that is a stop on request, too.
# shellcheck disable=SC2016
TASK='
trap : TERM USR1
"$@"
code=$?
case $code in
1 | 2 | 3) code=$((code + 75)) ;;
138 | 143) code=75 ;;
esac
exit $code
'

prepare() {
    activate || { say "activate, in the top block of the script, failed"; exit 2; }
    if [ ${#CONTAINER[@]} = 0 ] && ! command -v job >/dev/null; then
        say "there is no command 'job' after activate, in the top block of the script"
        exit 2
    fi
    export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
    export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
}

run_tasks() {
    local code
    srun --kill-on-bad-exit=1 --export=ALL ${CONTAINER[@]+"${CONTAINER[@]}"} bash -c "$TASK" task \
        job run --model "$MODEL" --tensor-parallel-size "$TENSOR_PARALLEL_SIZE" --dataset "$DATASET" \
        --output "$OUTPUT" ${OPTIONS[@]+"${OPTIONS[@]}"} "$@"
    code=$?
    case $code in 76 | 77 | 78) code=$((code - 75)) ;; esac
    return $code
}

# Slurm tells the batch shell to go after scancel, at the time limit, and when it requeues the job itself. Only at the
# time limit is there something left to do.
slurm_has_decided() {
    [ "$is_told_to_go" = 1 ] && ! scontrol show job "$job_id" | grep -q 'Reason=TimeLimit'
}

requeue() {
    local refusal code
    if [ "$num_restarts" -ge "$MAX_REQUEUES" ]; then
        say "stopped, and restarted $num_restarts times already (MAX_REQUEUES). Nothing is lost: sbatch the same" \
            "script again to go on"
        return
    fi
    refusal=$(scontrol requeue "$job_id" 2>&1)
    code=$?
    if [ $code != 0 ] && [ $code != 143 ]; then # 143: the requeue ended scontrol before it could say so
        say "stopped, and this site refuses a requeue (${refusal##*: }). Nothing is lost: sbatch the same script" \
            "again to go on"
        return
    fi
    say "stopped, and requeued: restart $((num_restarts + 1)) of at most $MAX_REQUEUES"
    trap - TERM
    sleep 300 # the requeue ends this shell; leaving by itself, it would race with it
}

main() {
    local code
    say "job $job_id on $SLURM_JOB_NODELIST, restart $num_restarts of at most $MAX_REQUEUES"
    if [ "$num_restarts" -gt "$MAX_REQUEUES" ]; then
        requeue
        exit 75
    fi
    prepare
    is_told_to_go=0
    trap 'is_told_to_go=1' TERM # bash acts on it when srun has returned, so the tasks keep their time to stop
    run_tasks "$@"
    code=$?
    say "job run ended with exit code $code"
    if [ $code = 75 ] && ! slurm_has_decided; then requeue; fi
    exit $code
}

# Of an array, the last task's SLURM_JOB_ID is the id of the whole array: only this form names one task.
job_id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job_id=${job_id:-$SLURM_JOB_ID}
num_restarts=${SLURM_RESTART_COUNT:-0}
