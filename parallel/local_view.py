"""Parameters are DTensors; a module's forward sees the local shards, as if it were a smaller module on one device.

The state of a model (optimizer, checkpoint, gradient norm) thus knows the whole tensors, and its code knows no mesh.
Apply before `fully_shard`, whose hooks then gather the data-parallel shards around those of this file.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, distribute_tensor


def shard_parameters(
    module: nn.Module,
    mesh: DeviceMesh,
    placements: Mapping[str, Placement],
    gradient_placements: Mapping[str, Placement] | None = None,
    dtype: torch.dtype | None = None,
    shared: dict[nn.Parameter, nn.Parameter] | None = None,
) -> None:
    """Make the module's own parameters DTensors over a mesh of one dimension, and its forward see their local shards.

    placements: by parameter name; a parameter that is not named is replicated. Every rank must hold the same values
        (or the meta device), as each keeps its own part of what it has.
    gradient_placements: what a local gradient is, where that is not the parameter's placement: `Partial()` for a
        replicated weight that sees other tokens on each rank of the mesh. `Replicate()` there would be silently wrong.
    dtype: in which the forward sees them; None: their own.
    shared: pass one dictionary to all calls of a model, so that a parameter that two modules tie stays one.
    """
    names = [name for name, _ in module.named_parameters(recurse=False)]
    unknown = (set(placements) | set(gradient_placements or {})) - set(names)
    assert not unknown, f"{type(module).__name__} has no parameter {sorted(unknown)}; it has {names}"
    shared = {} if shared is None else shared
    for name in names:
        parameter = module._parameters[name]
        if parameter not in shared:
            placement = placements.get(name, Replicate())
            sharded = distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None)
            shared[parameter] = nn.Parameter(sharded, requires_grad=parameter.requires_grad)
        module.register_parameter(name, shared[parameter])
    _show_local_shards(module, names, gradient_placements or {}, dtype)


def _show_local_shards(
    module: nn.Module, names: Sequence[str], gradient_placements: Mapping[str, Placement], dtype: torch.dtype | None
) -> None:
    def before(module: nn.Module, inputs: object) -> None:
        for name in names:
            parameter = module._parameters[name]
            gradient = [gradient_placements[name]] if name in gradient_placements else parameter.placements
            # An entry of the instance's own dictionary hides the parameter from `module.name`.
            module.__dict__[name] = parameter.to_local(grad_placements=gradient).to(dtype)

    def after(module: nn.Module, inputs: object, output: object) -> None:
        for name in names:
            module.__dict__.pop(name, None)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, always_call=True)
