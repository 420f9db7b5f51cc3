# A virtual environment of wheels on each node, for nodes without internet.
venv=${TMPDIR:-/tmp}/upmix-$SLURM_JOB_ID
on_each_node() { srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --export=ALL bash -c "$@"; }
on_each_node '"$1" -m venv "$2" && "$2/bin/pip" install --quiet --no-index --find-links="$3" --requirement="$4"' _ \
  "$python" "$venv" "$wheels" "$job/requirements.txt" || exit 1
trap 'on_each_node "rm -rf \"\$1\"" _ "$venv"' EXIT
python=$venv/bin/python
