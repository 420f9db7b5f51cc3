"""Sharded data parallelism on PyTorch's `fully_shard` (FSDP2, HSDP), in the convention of shares and sums.

Every rank's loss is its share of the whole batch's, so gradients are summed over ranks and never divided.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard


def precision(dtype: torch.dtype) -> MixedPrecisionPolicy:
    """Weights reach the forward in `dtype`; gradients are summed in float32 where that is a lower precision."""
    if dtype.itemsize >= torch.float32.itemsize:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def shard(
    modules: nn.Module | Sequence[nn.Module],
    mesh: DeviceMesh,
    policy: MixedPrecisionPolicy,
    reshard_after_forward: bool,
    placement: Callable[[nn.Parameter], Shard | None] | None = None,
) -> None:
    """Shard the parameters below `modules` that no earlier call took, as one unit of communication.

    mesh: of one dimension (shards), or two (replicas, shards). Several modules form one unit.
    reshard_after_forward: free the gathered weights after the forward and gather them again for the backward.
    """
    modules = list(modules) if isinstance(modules, Sequence) else [modules]
    fully_shard(
        modules, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward, shard_placement_fn=placement
    )
    for module in modules:
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def expert_placement(num_shards: int) -> Callable[[nn.Parameter], Shard]:
    """The dim over which expert weights [E, ...] are sharded: experts, or their next dim where experts are too few."""

    def place(parameter: nn.Parameter) -> Shard:
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        too_few = local.shape[0] < num_shards and local.shape[1] % num_shards == 0
        return Shard(1 if too_few else 0)

    return place


def set_gradient_sync(model: nn.Module, last: bool) -> None:
    """Call before each micro-batch's backward: gradients stay local until the last one, then are summed over ranks."""
    assert isinstance(model, FSDPModule), "the model was not parallelized"
    model.set_requires_gradient_sync(last)
    model.set_is_last_backward(last)
