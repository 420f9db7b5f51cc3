"""The state of training as one flat dict of tensors: `model.NAME`, `optim.NAME.{exp_avg,exp_avg_sq,step}`."""

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from framework.parametrization.roles import declarations


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters (a tied one once) and persistent buffers, aliasing the model: loading into them loads the model."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    parameters = {f"model.{name}": module.get_parameter(local).detach()
                  for name, module, local, _ in declarations(model)}
    return parameters | buffer_tensors(model)


def buffer_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Persistent buffers, aliasing the model."""
    tensors = {}
    for prefix, module in model.named_modules():
        for local, buffer in module.named_buffers(recurse=False):
            if local not in module._non_persistent_buffers_set:
                name = f"{prefix}.{local}".lstrip(".").replace("_checkpoint_wrapped_module.", "")
                tensors[f"model.{name}"] = buffer
    return tensors


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by the names of the parameters, aliasing the optimizer."""
    return {f"optim.{name}.{key}": value
            for name, module, local, _ in declarations(model)
            for key, value in optimizer.state[module.get_parameter(local)].items()}


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in host memory, which training may run away from."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
