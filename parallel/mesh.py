"""The mesh: one world of ranks, named by what each axis is for.

Ranks are numbered with pp outermost, then dp_replicate, dp_shard, cp, and tp innermost. Every mesh here is that one
array in another shape, so two axes that stand side by side are merged by reshaping, and all views agree on the ranks.
A parameter is sharded over axes of one mesh only: dense ones over `dense_shards` and `tp`, experts over
`expert_shards` and `ep`.
"""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parallel.mesh_sizes import MeshSizes


class Mesh:
    """The axes and views of a world, each a one-dimensional DeviceMesh unless it says otherwise.

    Collective: every rank of a process group of exactly `sizes.world` ranks constructs it, with the same sizes.
    Raises ValueError where the world has another number of ranks.
    """

    def __init__(self, sizes: MeshSizes, device_type: str) -> None:
        self.sizes = sizes
        self.device_type = device_type
        self._patience = _timeout_of_world(device_type)
        s = sizes

        dense = self._shape(pp=s.pp, dp_replicate=s.dp_replicate, dp_shard=s.dp_shard, cp=s.cp, tp=s.tp)
        # Stages of the pipeline: each holds other layers; activations go from one to the next.
        self.pp = dense["pp"]
        # Copies of the whole sharded model: they see other data; gradients are all-reduced (HSDP's outer axis).
        self.dp_replicate = dense["dp_replicate"]
        # Ranks that see other data and share one copy of the parameters.
        self.dp_shard = dense["dp_shard"]
        # Ranks that split each sequence into consecutive parts; outside the sequence's own mixing they are as dp_shard.
        self.cp = dense["cp"]

        parameters = self._shape(pp=s.pp, dp_replicate=s.dp_replicate, fsdp=s.dp_shard * s.cp, tp=s.tp)
        # Ranks that split heads, FFN width and vocabulary, and between them the tokens (sequence parallelism).
        self.tp = parameters["tp"]
        # Ranks over which dense parameters, their gradients and optimizer state are sharded.
        self.fsdp = parameters["fsdp"]
        # What `fully_shard` takes for dense parameters: fsdp, with dp_replicate before it where there are replicas.
        self.dense_shards = parameters["dp_replicate", "fsdp"] if s.dp_replicate > 1 else parameters["fsdp"]

        experts = self._shape(pp=s.pp, dp_replicate=s.dp_replicate, expert_dp=s.expert_dp, ep=s.ep)
        # Ranks that hold different experts and exchange tokens. Innermost: it folds over tp, then cp, then dp_shard.
        self.ep = experts["ep"]
        # Ranks that hold the same experts; these are sharded over them.
        self.expert_dp = experts["expert_dp"]
        # What `fully_shard` takes for experts.
        self.expert_shards = experts["dp_replicate", "expert_dp"] if s.dp_replicate > 1 else experts["expert_dp"]

        data = self._shape(pp=s.pp, batch=s.batch, sequence=s.cp * s.tp)
        # Who loads which data: rank r of n takes the r-th of n equal shares of the sequences. Ranks that differ
        # only in pp, cp or tp are the same rank here and load the same sequences.
        self.batch = data["batch"]
        # Ranks that hold parts of the same sequences: statistics of a sequence are summed over them.
        self.sequence = data["sequence"]

        losses = self._shape(pp=s.pp, loss=s.dp_replicate * s.dp_shard * s.cp, tp_copies=s.tp)
        # Whom the cross entropy is summed over: ranks with different tokens. All ranks of tp know the same value.
        self.loss = losses["loss"]

        stages = self._shape(pp_copies=s.pp, stage=s.dp_replicate * s.one_copy)
        # All ranks of one pipeline stage, which run one forward together: its statistics are summed over them.
        self.stage = stages["stage"]

    def _shape(self, **degrees: int) -> DeviceMesh:
        mesh = init_device_mesh(self.device_type, tuple(degrees.values()), mesh_dim_names=tuple(degrees))
        for group in mesh.get_all_groups():
            # New groups wait for torch's own 10 (NCCL) or 30 minutes, whatever the world was told.
            distributed_c10d._set_pg_timeout(self._patience, group)
        return mesh


def _timeout_of_world(device_type: str) -> timedelta:
    """How long a rank waits for others in a collective, as `join` was told."""
    return dist.group.WORLD._get_backend(torch.device(device_type)).options._timeout
