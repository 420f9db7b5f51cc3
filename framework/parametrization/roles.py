"""Roles: what a parameter is for. Rules (init, learning rate, weight decay, sharding) are tables over roles.

Every parameter has exactly one role, declared where it is created by `add_parameter`. The declaration stays on the
module, not on the tensor, because sharding replaces the tensor.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import nn


class Role(StrEnum):
    """What a parameter is for."""

    EMBEDDING = "embedding"
    UNEMBEDDING = "unembedding"
    ATTENTION_Q = "attention_q"
    ATTENTION_K = "attention_k"
    ATTENTION_V = "attention_v"
    ATTENTION_OUT = "attention_out"
    FFN_UP = "ffn_up"
    FFN_GATE = "ffn_gate"
    FFN_DOWN = "ffn_down"
    EXPERT_UP = "expert_up"
    EXPERT_GATE = "expert_gate"
    EXPERT_DOWN = "expert_down"
    SHARED_EXPERT_UP = "shared_expert_up"
    SHARED_EXPERT_GATE = "shared_expert_gate"
    SHARED_EXPERT_DOWN = "shared_expert_down"
    SHARED_EXPERT_ROUTER = "shared_expert_router"
    ROUTER = "router"
    SSM_Z = "ssm_z"
    SSM_X = "ssm_x"
    SSM_B = "ssm_B"
    SSM_C = "ssm_C"
    SSM_DT = "ssm_dt"
    SSM_CONV = "ssm_conv"
    SSM_A = "ssm_A"
    SSM_D = "ssm_D"
    SSM_OUT = "ssm_out"
    MIXING = "mixing"
    NORM = "norm"
    BIAS = "bias"


Init = Callable[[torch.Tensor, torch.Generator], None]


@dataclass(frozen=True)
class Declaration:
    """What is known of a parameter where it is created.

    fan_in: width that a matrix sums over (per expert for experts); 1 for embeddings, vectors and scalars.
    stacked: dim 0 enumerates independent matrices (experts), each initialised on its own.
    writes_residual: the matrix's output is added to the residual stream.
    init: fills the full tensor in place from a generator, its docstring says with what ("Fill with ..."); None where
    the recipe's init rule applies.
    """

    role: Role
    fan_in: int = 1
    stacked: bool = False
    writes_residual: bool = False
    init: Init | None = None


def add_parameter(module: nn.Module, name: str, shape: tuple[int, ...], declaration: Declaration) -> None:
    """Register an uninitialised float32 parameter on the module (on torch's current default device)."""
    module.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=torch.float32)))
    module.__dict__.setdefault("declarations", {})[name] = declaration


def declarations(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Declaration]]:
    """Yield (qualified name, module, local name, declaration) of every parameter, a tied one once.

    Wrappers that recomputation inserts do not show in the names. Raises AssertionError where a role is missing.
    """
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        prefix = prefix.replace("_checkpoint_wrapped_module.", "").removesuffix("_checkpoint_wrapped_module")
        declared = module.__dict__.get("declarations", {})
        for name, parameter in module.named_parameters(recurse=False):
            assert name in declared, f"{prefix}.{name} was created without a role"
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}".lstrip("."), module, name, declared[name]


def constant(value: float) -> Init:
    """An init that fills with one value."""

    def fill(tensor: torch.Tensor, generator: torch.Generator) -> None:
        tensor.fill_(value)

    fill.__doc__ = f"Fill with {value:g}."
    return fill
