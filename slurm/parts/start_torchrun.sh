# One agent of torchrun a node. It must not see USR1, which would end it: its ranks set handlers of their own.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
start() {
  exec srun "${flags[@]}" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 \
    bash -c 'trap "" USR1; export PET_NODE_RANK=$SLURM_NODEID; exec "$@"' _ \
    "${container[@]}" "$python" -m torch.distributed.run --nnodes="$SLURM_NNODES" --nproc-per-node="$ranks_per_node" \
    --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" -m framework.cli "$@"
}
