"""What Mamba-1 and Mamba-2 share: convolution, dynamics, cache and their initial values.

B batch, S sequence, C channels, K taps, I inner width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.model.context import Context
from framework.parametrization.roles import Declaration, Init, Role, add_parameter, constant
from kernels import causal_convolution

DT_MIN, DT_MAX = 1e-3, 0.1
"""Range of the time steps at initialisation."""


@dataclass
class SSMCache:
    """What a block remembers of the tokens so far: the state of its scan and the last inputs of each convolution.

    Empty before the first token, and filled by the block's forward.
    """

    state: Tensor | None = None
    tails: dict[str, Tensor] = field(default_factory=dict)


class CausalConvolution(nn.Module):
    """silu(depthwise causal convolution): `weight` float32 [C, K], `bias` float32 [C].

    Both start uniform in +-1/sqrt(K), as torch.nn.Conv1d's, which the papers keep. Parallelism from outside replaces
    `convolve` where ranks hold parts of a sequence.
    """

    def __init__(self, num_channels: int, num_taps: int) -> None:
        super().__init__()
        self.convolve: Callable[..., tuple[Tensor, Tensor]] = causal_convolution
        init = uniform(num_taps**-0.5)
        add_parameter(self, "weight", (num_channels, num_taps), Declaration(Role.SSM_CONV, num_taps, init=init))
        add_parameter(self, "bias", (num_channels,), Declaration(Role.BIAS, init=init))

    def forward(self, x_BSC: Tensor, context: Context, tail_BKC: Tensor | None) -> tuple[Tensor, Tensor]:
        """x_BSC and the K-1 inputs before it (None: zeros) -> y_BSC of the same dtype, and the last K-1 inputs."""
        return self.convolve(x_BSC, self.weight, self.bias, context.document_BS, tail_BKC)


class Dynamics(nn.Module):
    """How a scan's state decays, steps and is skipped: `A_log`, `D` and `dt_bias`, always float32.

    rate_shape: [I, N] for Mamba-1, [H] for Mamba-2; D and dt_bias have its first dim. rate_init: fills A_log.
    """

    keep_float32 = True

    def __init__(self, rate_shape: tuple[int, ...], rate_init: Init) -> None:
        super().__init__()
        add_parameter(self, "A_log", rate_shape, Declaration(Role.SSM_A, init=rate_init))
        add_parameter(self, "D", rate_shape[:1], Declaration(Role.SSM_D, init=constant(1.0)))
        add_parameter(self, "dt_bias", rate_shape[:1], Declaration(Role.BIAS, init=dt_bias))

    def forward(self, dt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt: projected time steps [..., I or H] -> softplus(dt + dt_bias), A = -exp(A_log) and D, float32 at least."""
        wide = torch.promote_types(dt.dtype, torch.float32)
        # D is handed on: a view of the parameter itself would lose what `fully_shard` hangs on results.
        A_log, D, bias = self.A_log.to(wide), self.D.to(wide, copy=True), self.dt_bias.to(wide)
        return F.softplus(dt.to(wide) + bias), -A_log.exp(), D


def uniform(bound: float) -> Init:
    """An init uniform in +-bound."""

    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        tensor.uniform_(-bound, bound, generator=generator)

    fill.__doc__ = f"Fill with uniform values in +-{bound:.3g}."
    return fill


def dt_bias(tensor: Tensor, generator: torch.Generator) -> None:
    """Fill with the inverse softplus of time steps that are log-uniform in [DT_MIN, DT_MAX]."""
    tensor.uniform_(math.log(DT_MIN), math.log(DT_MAX), generator=generator).exp_()
    tensor.add_(torch.log(-torch.expm1(-tensor)))
