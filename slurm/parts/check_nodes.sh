check_nodes() {
  srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --export=ALL \
    bash -c 'eval "$1" || { echo "upmix: the health check failed on $SLURMD_NODENAME"; exit 1; }' _ "$health_check"
}
