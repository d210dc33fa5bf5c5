#!/bin/bash
# Many machines under SLURM, with one launcher per machine and one process per GPU. Two minutes before its time limit the
# job is asked to stop: it saves a checkpoint, is requeued and resumes. A finished or a failed job is not requeued.
#
#     sbatch --nodes 4 --time 24:00:00 scripts/accelerate_configs/slurm.sh \
#         scripts/finetune_bert_no_trainer.py --output_dir ... ...
#
# --output_dir must be on a disk that all machines share. `srun python script.py` without a launcher would start unrelated
# runs; the scripts detect this and exit with an error.
#SBATCH --job-name=hf_warmup
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

export GPUS_PER_NODE="${GPUS_PER_NODE:-8}"
MAIN_PROCESS_IP="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MAIN_PROCESS_IP
export MAIN_PROCESS_PORT="$((20000 + SLURM_JOB_ID % 10000))" # two jobs on one machine need two ports
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100                   # seconds to save; the launcher kills after 30 by default

stopped=false
trap 'stopped=true; scancel --signal=TERM "$SLURM_JOB_ID"' TERM # B: signals this script only; scancel all of its steps

# shellcheck disable=SC2016  # $SLURM_NODEID is expanded on each machine
srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch \
        --multi_gpu --mixed_precision bf16 --dynamo_backend no --rdzv_backend static \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS_PER_NODE))" \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$MAIN_PROCESS_IP" --main_process_port "$MAIN_PROCESS_PORT" \
        "$@" --resume_from_checkpoint auto --stop_on_signal true
' launch "$@" &
step=$!
wait "$step"
status=$?
while kill -0 "$step" 2>/dev/null; do # the signal has ended `wait`, but not the step
    wait "$step"
    status=$?
done

if $stopped && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
