#!/bin/bash
# Many machines under SLURM, with one launcher per machine and one process per GPU. A requeued job resumes its run.
#
#     sbatch --nodes 4 scripts/accelerate_configs/slurm.sh scripts/finetune_bert_no_trainer.py --output_dir ... ...
#
# --output_dir must be on a disk that all machines share. `srun python script.py` without a launcher would start unrelated
# runs; the scripts detect this and exit with an error.
#SBATCH --job-name=hf_warmup
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --requeue
set -euo pipefail

GPUS_PER_NODE="${GPUS_PER_NODE:-8}"
MAIN_PROCESS_IP="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MAIN_PROCESS_IP GPUS_PER_NODE

# shellcheck disable=SC2016  # $SLURM_NODEID is expanded on each machine
srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch \
        --multi_gpu --mixed_precision bf16 --dynamo_backend no --rdzv_backend static \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS_PER_NODE))" \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$MAIN_PROCESS_IP" --main_process_port 29500 \
        "$@" --resume_from_checkpoint auto
' launch "$@"
