#!/bin/bash
# One run on several machines of a SLURM cluster, which goes on where it stood when it was pre-empted or its time was up.
# Run:      sbatch recipes/accelerate/slurm/train.sh sft --config recipes/gpt2/sft.yaml --output_dir runs/sft
# Needs:    this folder, its .venv (or RLHF_KIT_PYTHON) and --output_dir on a file system that all machines share. The
#           lines #SBATCH say what machines there are: change them, or give sbatch others (--nodes=4 --gpus-per-node=4).
# Changes:  rows a step: as with the configuration on the GPUs of all machines together. CONFIG=fsdp2 sbatch ... takes
#           another configuration than ddp, by its name or its path.
#
# * srun starts one launcher a machine, each one process a GPU; they meet at the first machine.
# * Two minutes before the end of its time SLURM sends SIGTERM to this script (--signal=B:TERM@120), and so it may when it
#   pre-empts. The script hands it on; the run finishes its step, saves and ends; the job goes into the queue again.
# * The next start goes on from that checkpoint, the first begins at the beginning: --resume_from_checkpoint. A run that
#   does not come to it within --stop_within (100 s) ends at once: --save_steps says how much work is lost then.
# * A run that ends by itself, well or not, is not put into the queue again.
#SBATCH --job-name=rlhf-kit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

STAGE=${1:?which stage: sbatch train.sh sft --config ...}
shift
PYTHON=${RLHF_KIT_PYTHON:-.venv/bin/python}
CONFIG=${CONFIG:-ddp}
[ -f "$CONFIG" ] || CONFIG=recipes/accelerate/$CONFIG.yaml
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 20000))  # each job has its own
PROCESSES=$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:?no GPUs: sbatch --gpus-per-node=N}))
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}  # the launcher kills after 30 s otherwise

asked_to_end=
trap 'asked_to_end=yes; kill -TERM "$run"' TERM

# The shell on each machine knows its own SLURM_NODEID.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c '
  exec "$0" -m accelerate.commands.launch --machine_rank "$SLURM_NODEID" "$@"' \
  "$PYTHON" --config_file "$CONFIG" --num_machines "$SLURM_NNODES" --num_processes "$PROCESSES" --same_network \
  --main_process_ip "$FIRST" --main_process_port "$PORT" "recipes/$STAGE.py" "$@" --resume_from_checkpoint &
run=$!
wait "$run"
status=$?
if [ "$asked_to_end" ]; then
  wait "$run"  # the signal ended the first wait, not the run
  echo "The run was asked to end; job $SLURM_JOB_ID goes into the queue again."
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
