"""The whole gradient, whose tensors are sharded over different meshes: its norm, clipping by it, what is bad in it."""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parallel.collectives import all_sum
from parallel.mesh import Mesh

BLOCK = 256
"""Elements whose squares are summed in float32 before float64 takes over."""


def gradient_norm(parameters: Iterable[nn.Parameter], mesh: Mesh) -> Tensor:
    """The 2-norm of all gradients as if they stood on one rank: a float64 scalar, the same on every rank.

    Collective over the world. NaN or Inf in any gradient on any rank makes it NaN or Inf. Each rank's squares are
    divided by the number of ranks that hold the same shard, so that one sum over the world counts every element once,
    whatever mesh it is sharded over.
    """
    local_gradients = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            local_gradients[_num_copies(parameter, mesh)].append(parameter.grad.to_local())
    squares = torch.zeros((), dtype=torch.float64, device=mesh.device_type)
    for num_copies, gradients in local_gradients.items():
        squares += torch.stack(_norms(gradients)).square().sum() / num_copies
    return all_sum(squares, dist.group.WORLD).sqrt()


def clip_divisor(norm: Tensor, max_norm: float) -> Tensor:
    """By what gradients of this norm, as `gradient_norm` gives it, are to be divided so that it is at most `max_norm`:
    a float32 scalar of 1 or more, or NaN."""
    return ((norm + 1e-6) / max_norm).clamp(min=1.0).float()


def first_nonfinite_gradient(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    """The name of the first parameter whose gradient holds NaN or Inf on any rank, the same answer on every rank.

    Collective over the world, and slow: for naming the culprit once `gradient_norm` was not finite.
    """
    bad = None
    for position, (name, parameter) in enumerate(named_parameters):
        if parameter.grad is not None and not parameter.grad.to_local().isfinite().all():
            bad = (position, name)
            break
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, bad)
    return min((entry for entry in found if entry), default=(0, None))[1]


def _norms(gradients: list[Tensor]) -> list[Tensor]:
    """The 2-norm of each tensor, float64.

    In float32 the sum of a large tensor's squares loses digits, and others where shards are smaller; short sums do not.
    """
    if gradients[0].device.type == "cpu":  # asked for float64, PyTorch copies each tensor there
        return [_norm_by_blocks(gradient) for gradient in gradients]
    return torch._foreach_norm(gradients, 2, dtype=torch.float64)


def _norm_by_blocks(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    whole, rest = flat.split([len(flat) - len(flat) % BLOCK, len(flat) % BLOCK])
    norms = torch.linalg.vector_norm(whole.view(-1, BLOCK), dim=1)
    return torch.linalg.vector_norm(torch.cat([norms, rest]), dtype=torch.float64)


def _num_copies(parameter: DTensor, mesh: Mesh) -> int:
    """Ranks of a pipeline stage that hold the same shard of a parameter."""
    num_shards = 1
    for axis, placement in enumerate(parameter.placements):
        if not placement.is_replicate():  # a shard of a shard does not call itself one
            num_shards *= parameter.device_mesh.size(axis)
    return mesh.stage.size() // num_shards
