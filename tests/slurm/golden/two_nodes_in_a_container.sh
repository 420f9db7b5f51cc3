#!/bin/bash -l
# hybrid: 1 run on 2 nodes of 4 ranks. Written by `upmix submit`.
#SBATCH --job-name=hybrid
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=72
#SBATCH --partition=gh200
#SBATCH --account=my-project
#SBATCH --time=12:00:00
#SBATCH --export=HOME,USER,PATH,LANG,LC_ALL,UPMIX_DATA,WANDB_API_KEY
#SBATCH --signal=B:USR1@180
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --wait-all-nodes=1
#SBATCH --kill-on-invalid-dep=yes

# SLURM's warning (USR1) and its end (TERM), from the first moment on. Both are passed on: ranks save at one step and
# leave.
asked='' step=''
ask() { asked=$1; echo "$(date +%FT%T) upmix: the batch script got $1"; [[ -z $step ]] || kill -USR1 "$step" 2>/dev/null; }
trap 'ask USR1' USR1; trap 'ask TERM' TERM

# Where things stand.
workdir=/home/ann/project
runs=/home/ann/project/runs
job=/home/ann/project/runs/NAME/job
code=/home/ann/project/runs/.code/0123456789abcdef
cd "$workdir" || exit 1

# What is run.
names=(hybrid)
recipes=("$job"/recipes/hybrid.yaml)
all_steps=(1000)
slides=()
links=4 restarts=2 requeue=no

# How its Python comes to be there, and how ranks start.
export NCCL_SOCKET_IFNAME="hsn"
export PYTHONPATH="$code" PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
python="python3"
mounts=$(IFS=,; set -- /scratch:/scratch "$workdir:$workdir" "$runs:$runs" "$job:$job" "$code:$code"; echo "$*")
flags=(--export=ALL --kill-on-bad-exit=1 --cpus-per-task=72)
container=(apptainer exec --nv --bind="$mounts" --pwd="$workdir" "$HOME/containers/pytorch_aarch64.sif")
# One task of srun a rank: its place in the world, and where ranks meet, are SLURM's own variables.
start() { exec srun "${flags[@]}" "${container[@]}" "$python" -m framework.cli "$@"; }
check_nodes() { :; }

# The run of this task. The last task of an array has the array's own id as SLURM_JOB_ID: requeued by that, every
# task would start again.
index=${SLURM_ARRAY_TASK_ID:-0}
name=${names[index]} steps=${all_steps[index]} recipe=${recipes[index]} slide=${slides[index]:-}
task=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; task=${task:-$SLURM_JOB_ID}
link=${1:-1}
folder=$runs/$name; [[ -z $slide || $slide == none ]] || folder+=-slide-$slide
say() { echo "$(date +%FT%T) upmix: $*"; }
say "job $task, start $((1 + ${SLURM_RESTART_COUNT:-0})), link $link of $links, on $SLURM_JOB_NODELIST: $folder"

number() { local text; text=$(cat "$1" 2>/dev/null); [[ $text =~ ^[0-9]{1,18}$ ]] && echo "$text" || echo "$2"; }
finished() { (( $(number "$folder/DONE" -1) >= steps )); }
newest() { # the step of the newest checkpoint
  local found=0 path
  for path in "$folder"/checkpoints/step_*; do
    path=${path##*_}; [[ $path =~ ^[0-9]{1,18}$ ]] && (( path > found )) && found=$path
  done
  echo "$found"
}
finished && { say "finished already"; exit 0; }

# A start counts as long as no checkpoint moves the run on, whatever ended it.
counts=$job/starts/${folder##*/}
before=$(newest)
if [[ $(number "$counts.step" -1) == "$before" ]]; then starts=$(($(number "$counts" 0) + 1)); else starts=1; fi
echo "$before" > "$counts.step"; echo "$starts" > "$counts"
give_up() { say "given up: $starts starts from step $before brought no checkpoint"; exit 1; }
(( starts <= restarts + 1 )) || give_up

# bash runs a trap between commands only, and a trapped signal ends `wait` early: hence the loop.
code=0
check_nodes || code=$?
if [[ $code == 0 && -z $asked ]]; then
  start train "$recipe" --name "$name" --runs-dir "$runs" --resume ${slide:+--slide "$slide"} &
  step=$!
  while :; do
    wait "$step"; code=$?
    kill -0 "$step" 2>/dev/null || break
  done
fi
[[ $code -lt 128 || -n $asked ]] || sleep 2 # what ended the ranks may reach this script a moment later
after=$(newest)
say "ended with $code at step $after of $steps${asked:+, asked to by $asked}"

finished && exit 0
[[ $code != 2 ]] || exit 2             # a mistake of the user: no restart mends it
[[ $asked != TERM ]] || exit 143       # cancelled, or preempted: then SLURM itself requeues
if [[ $requeue == yes ]]; then
  (( after > before || starts <= restarts )) || give_up
  scontrol requeue "$task" && sleep 60 # which ends this script
  say "could not be requeued: submit it again to go on"
elif [[ $asked == USR1 && $link -lt $links ]]; then
  exit 0                               # the next link of the chain goes on
fi
exit $((code ? code : 1))
