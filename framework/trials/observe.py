"""What each role of a model puts out for a batch: the coordinates that a width parametrization keeps in size.

B batch, S sequence, T = B * S tokens, D model width, F expert width, E experts.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from framework.model import Context, LanguageModel
from framework.model.moe.experts import Experts
from framework.model.residual import ParallelResidual, Residual
from framework.parametrization.roles import Role, declarations
from kernels.activations import ACTIVATIONS

Coordinates = dict[str, list[Tensor]]
"""By role: one tensor for each module or parameter of it, in the model's order."""

RESIDUAL = "residual"
"""The residual stream after each layer, which is watched beside the roles."""

ITSELF = frozenset({Role.BIAS, Role.SSM_A, Role.SSM_D})
"""Roles without a product of their own: their parameters are the coordinates."""


@torch.no_grad()
def outputs(model: LanguageModel, tokens_BS: Tensor) -> Coordinates:
    """What every role puts out for a batch, in evaluation mode, on one rank.

    Of experts: what each makes of every token, whoever is routed to it, so that a change of routing is none of theirs.
    """
    found: Coordinates = defaultdict(list)
    handles = [module.register_forward_hook(_recorder(found, module)) for module in model.modules() if _role(module)]
    model.eval()
    try:
        model(tokens_BS, Context())
    finally:
        for handle in handles:
            handle.remove()
    for role, tensors in parameters(model).items():
        if role in ITSELF:
            found[role] = tensors
    return dict(found)


def parameters(model: LanguageModel) -> Coordinates:
    """Copies of the parameters of every role."""
    found: Coordinates = defaultdict(list)
    for _, module, name, declaration in declarations(model):
        found[declaration.role].append(module.get_parameter(name).detach().clone())
    return dict(found)


def _role(module: nn.Module) -> str | None:
    """The role that a module's output belongs to."""
    if isinstance(module, Residual | ParallelResidual):
        return RESIDUAL
    if isinstance(module, Experts):
        return Role.EXPERT_DOWN
    declared = module.__dict__.get("declarations", {})
    return declared["weight"].role if "weight" in declared else None


def _recorder(found: Coordinates, module: nn.Module):
    def record(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        if isinstance(module, Experts):
            for role, tensor in _of_every_expert(module, inputs[0]).items():
                found[role].append(tensor)
        else:
            found[_role(module)].append((output[0] if isinstance(output, tuple) else output).clone())

    return record


def _of_every_expert(experts: Experts, x_TD: Tensor) -> dict[Role, Tensor]:
    """[E, T, F] before the activation and [E, T, D] after the second product."""
    x_TD = x_TD * experts.multiplier
    up_ETF = x_TD @ experts.up.mT
    activate = ACTIVATIONS[experts.activation].forward
    if experts.gate is None:
        return {Role.EXPERT_UP: up_ETF, Role.EXPERT_DOWN: activate(up_ETF) @ experts.down.mT}
    gate_ETF = x_TD @ experts.gate.mT
    down_ETD = (activate(gate_ETF) * up_ETF) @ experts.down.mT
    return {Role.EXPERT_GATE: gate_ETF, Role.EXPERT_UP: up_ETF, Role.EXPERT_DOWN: down_ETD}
