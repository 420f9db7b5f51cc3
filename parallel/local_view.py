"""Parameters are DTensors; a module's forward sees the local shards, as if it were a smaller module on one device.

The state of a model (optimizer, checkpoint, gradient norm) thus knows the whole tensors, and its code knows no mesh.
Apply before `fully_shard`, whose hooks then gather the data-parallel shards around those of this file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, distribute_tensor


class Leaf(NamedTuple):
    """A leaf of autograd, the parameter that it hands its gradient to, and the shard whose memory it shares."""

    tensor: Tensor
    parameter: DTensor
    shard: Tensor


@dataclass
class Sharded:
    """A parameter made a DTensor, and how many modules use it: several where they are tied. leaf: see `_leaf`."""

    parameter: nn.Parameter
    num_modules: int = 0
    leaf: Leaf | None = None


def shard_parameters(
    module: nn.Module,
    mesh: DeviceMesh,
    placements: Mapping[str, Placement],
    gradient_placements: Mapping[str, Placement] | None = None,
    dtype: torch.dtype | None = None,
    shared: dict[nn.Parameter, Sharded] | None = None,
    leaves: bool = False,
) -> None:
    """Make the module's own parameters DTensors over a mesh of one dimension, and its forward see their local shards.

    placements: by parameter name; a parameter that is not named is replicated. Every rank must hold the same values
        (or the meta device), as each keeps its own part of what it has.
    gradient_placements: what a local gradient is, where that is not the parameter's placement: `Partial()` for a
        replicated weight that sees other tokens on each rank of the mesh. `Replicate()` there would be silently wrong.
    dtype: in which the forward sees them; None: their own.
    shared: pass one dictionary to all calls of a model, so that a parameter that two modules tie stays one.
    leaves: on a mesh of one rank the forward sees a leaf of autograd that hands its gradient over to the parameter.
        Cheaper, but only `backward` reaches the parameter then, and `torch.autograd.grad` does not.
    """
    names = [name for name, _ in module.named_parameters(recurse=False)]
    unknown = (set(placements) | set(gradient_placements or {})) - set(names)
    assert not unknown, f"{type(module).__name__} has no parameter {sorted(unknown)}; it has {names}"
    shared, entries = {} if shared is None else shared, {}
    for name in names:
        parameter = module._parameters[name]
        if parameter not in shared:
            placement = placements.get(name, Replicate())
            sharded = distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None)
            shared[parameter] = Sharded(nn.Parameter(sharded, requires_grad=parameter.requires_grad))
        shared[parameter].num_modules += 1
        module.register_parameter(name, shared[parameter].parameter)
        entries[name] = shared[parameter]
    _show_local_shards(module, entries, gradient_placements or {}, dtype, leaves and mesh.size() == 1)


def _show_local_shards(
    module: nn.Module, entries: Mapping[str, Sharded], gradient_placements: Mapping[str, Placement],
    dtype: torch.dtype | None, leaves: bool,
) -> None:
    """Replace the module's forward by one within which its parameters are the local shards.

    Not by hooks: they have numbers, which the compiler takes for a difference between modules that are alike.
    """
    plain_forward = module.forward

    def forward(*args: object, **kwargs: object) -> object:
        parameters = {name: module._parameters[name] for name in entries}
        for name, entry in entries.items():
            parameter = parameters[name]
            if leaves and entry.num_modules == 1 and not torch.compiler.is_compiling():
                local = _leaf(entry, parameter)
            else:
                gradient = [gradient_placements[name]] if name in gradient_placements else parameter.placements
                local = parameter.to_local(grad_placements=gradient)
            module._parameters[name] = local if dtype is None else local.to(dtype)
        try:
            return plain_forward(*args, **kwargs)
        finally:
            module._parameters.update(parameters)

    module.forward = forward


def _leaf(entry: Sharded, parameter: DTensor) -> Tensor:
    """The only shard of a parameter, as a leaf of autograd that hands its gradient over to the parameter.

    Through `to_local` autograd would copy every gradient: it does not take over those of tensor subclasses. With 15
    million parameters on a CPU that and the detour cost a tenth of a step. The leaf stays from forward to forward, as
    making one takes the host longer than a small operation.
    """
    shard = parameter._local_tensor  # what `to_local` gives where no gradient is wanted
    if not (torch.is_grad_enabled() and parameter.requires_grad):
        return shard
    if entry.leaf is None or entry.leaf.shard is not shard or entry.leaf.parameter is not parameter:
        tensor = shard.detach().requires_grad_()
        tensor.register_post_accumulate_grad_hook(lambda leaf: _hand_over(leaf, parameter))
        entry.leaf = Leaf(tensor, parameter, shard)
    return entry.leaf.tensor


def _hand_over(leaf: Tensor, parameter: DTensor) -> None:
    if parameter.grad is None:
        # `DTensor.from_local` would record a node of autograd, which costs more than a small gradient.
        parameter.grad = DTensor(leaf.grad, parameter._spec, requires_grad=False)
    else:
        parameter.grad.to_local().add_(leaf.grad)
    leaf.grad = None
