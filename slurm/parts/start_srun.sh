# One task of srun a rank: its place in the world, and where ranks meet, are SLURM's own variables.
start() { exec srun "${flags[@]}" "${container[@]}" "$python" -m framework.cli "$@"; }
