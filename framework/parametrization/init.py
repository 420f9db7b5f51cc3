"""How parameters start: the recipe's rule for matrices, the declared rule for the rest.

Values depend on the seed and the parameter's qualified name alone, so that every layout of ranks starts alike.
"""

import hashlib
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from framework.parametrization.roles import Declaration, declarations
from framework.parametrization.shards import Shards
from framework.parametrization.widths import STANDARD, WidthRule, Widths
from framework.recipe.parameters import family_of

if TYPE_CHECKING:
    from framework.recipe.schema import Init


@torch.no_grad()
def initialize(model: nn.Module, settings: "Init", seed: int, widths: Widths = STANDARD) -> None:
    """Fill every parameter of a model in place, plain tensors and DTensors of any sharding alike; buffers start at 0.

    model: has `num_residual_branches`. Rules for a matrix that sums over fan_in values:
    truncated_normal: std sqrt(scale / fan_in) (https://arxiv.org/abs/2101.03961), cut at +-2 * scale;
    truncated_normal_fixed: std scale / sqrt(fan_in), cut at 2 std;
    normal: std as given.
    An embedding has fan_in 1, a tied one d_model; an expert's fan_in is its own: d_model in, d_expert out.
    widths: what the parametrization makes of these rules, as the model grows from its base width. `relative_std` are
    further factors on the std, by role or family. `scale_residual_outputs` divides the std, before cutting, of matrices
    that write to the residual stream by sqrt(num_residual_branches). Parameters that declare an init of their own
    follow that alone.

    A rank draws only the matrices that it holds a part of, on the CPU, one expert at a time.
    """
    for name, module, local_name, declaration in declarations(model):
        std, cut = spread(declaration, settings, widths.rule(name), model.num_residual_branches)
        _fill(module._parameters[local_name], declaration, std, cut, _first_seed(seed, name))
    for buffer in model.buffers():
        buffer.zero_()


def spread(
    declaration: Declaration, settings: "Init", width: WidthRule, num_residual_branches: int
) -> tuple[float, float]:
    """Standard deviation before cutting of a matrix without an init of its own, and the absolute value beyond which
    there is nothing."""
    role, fan_in = declaration.role, declaration.fan_in / width.growth
    factor = width.std_factor * settings.relative_std.get(role, settings.relative_std.get(family_of(role), 1.0))
    if declaration.writes_residual and settings.scale_residual_outputs:
        factor *= num_residual_branches**-0.5
    if settings.rule == "truncated_normal":
        return factor * math.sqrt(settings.scale / fan_in), 2 * settings.scale
    if settings.rule == "truncated_normal_fixed":
        std = factor * settings.scale / math.sqrt(fan_in)
        return std, 2 * std
    return factor * settings.std, math.inf


def _fill(parameter: Tensor, declaration: Declaration, std: float, cut: float, first_seed: int) -> None:
    """Draw the full tensor, or the held ones of a stack of matrices, and copy the part that this rank holds."""
    shards = Shards(parameter)
    if declaration.stacked:
        for position, index in enumerate(shards.indices[0].tolist()):
            full = _draw(parameter.shape[1:], declaration, std, cut, first_seed + index)
            shards.local[position].copy_(shards.select(full, first_dim=1))
    elif shards.local.numel():
        shards.local.copy_(shards.select(_draw(parameter.shape, declaration, std, cut, first_seed)))


def _draw(shape: torch.Size, declaration: Declaration, std: float, cut: float, seed: int) -> Tensor:
    """One whole matrix or vector, float32 on the CPU, whose generator is the same on every machine."""
    # PyTorch's CPU generator looks at 32 bits of its seed.
    generator = torch.Generator("cpu").manual_seed(seed % 2**32)
    full = torch.empty(shape, dtype=torch.float32, device="cpu")
    if declaration.init is not None:
        declaration.init(full, generator)
    else:
        truncated_normal_(full, std, cut, generator)
    return full


def truncated_normal_(tensor: Tensor, std: float, cut: float, generator: torch.Generator) -> None:
    """Fill with a normal of the given std and mean 0, conditioned on |value| <= cut (which may be infinite).

    Through the inverse distribution function in float64. `torch.nn.init.trunc_normal_` draws otherwise from one release
    to the next, and in some puts a value at the cut itself every 2^24 draws.
    """
    if std == 0.0:
        tensor.zero_()
        return
    width = math.sqrt(2.0) * std
    draw = torch.empty(tensor.shape, dtype=torch.float64, device=tensor.device)
    # A normal within the cut is width * erfinv of a uniform number within +-erf(cut / width); never of +-1.
    draw.uniform_(-1.0, 1.0, generator=generator).mul_(math.erf(cut / width)).clamp_(2**-53 - 1, 1 - 2**-53)
    tensor.copy_(draw.erfinv_().mul_(width).clamp_(-cut, cut))


def _first_seed(seed: int, name: str) -> int:
    """Where a parameter's seeds start; the matrices of a stack follow one by one, so no two of them share one."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")
