#!/bin/bash -l
# copies: a command on 1 node of 1 rank. Written by `upmix submit`.
#SBATCH --job-name=copies
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=h100:1
#SBATCH --cpus-per-task=12
#SBATCH --partition=gpu
#SBATCH --account=my-project
#SBATCH --time=24:00:00
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --export=HOME,USER,PATH,LANG,LC_ALL,UPMIX_DATA
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --wait-all-nodes=1
#SBATCH --kill-on-invalid-dep=yes

# Where things stand.
workdir=/home/ann/project
runs=/home/ann/project/runs
job=/home/ann/project/runs/NAME/job
code=/home/ann/project/runs/.code/0123456789abcdef
cd "$workdir" || exit 1

# What is run.
arguments=(upcycle runs/dense --name more)

# How its Python comes to be there, and how ranks start.
module load cuda/12.8
export NCCL_DEBUG="WARN"
export OMP_NUM_THREADS="12"
export PYTHONPATH="$code" PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
python="$HOME/upmix/.venv/bin/python"
flags=(--export=ALL --kill-on-bad-exit=1 --cpus-per-task=12)
container=()
# One task of srun a rank: its place in the world, and where ranks meet, are SLURM's own variables.
start() { exec srun "${flags[@]}" "${container[@]}" "$python" -m framework.cli "$@"; }
health_check='test "$(nvidia-smi -L | wc -l)" -eq 8'
check_nodes() {
  srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --export=ALL \
    bash -c 'eval "$1" || { echo "upmix: the health check failed on $SLURMD_NODENAME"; exit 1; }' _ "$health_check"
}

step=''
trap '[[ -z $step ]] || kill -TERM "$step" 2>/dev/null' TERM
check_nodes || exit 1
start "${arguments[@]}" &
step=$!
while :; do
  wait "$step"; code=$?
  kill -0 "$step" 2>/dev/null || break
done
exit "$code"
