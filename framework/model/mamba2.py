"""The Mamba-2 block.

B batch, S sequence, D model width, I inner width, H heads, P head width, G groups, N state.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from framework.model.context import Context
from framework.model.linear import Linear, all_of
from framework.model.ssm import CausalConvolution, Dynamics, SSMCache
from framework.parametrization.roles import Declaration, Role, add_parameter, constant
from kernels import gated_rms_norm, ssd, ssd_step


class GatedRMSNorm(nn.Module):
    """RMSNorm of y * silu(z) over groups of channels, `weight` float32 [I] (https://arxiv.org/abs/2405.21060, 7.1).

    group_size is a constant of the model: a rank that holds fewer channels holds fewer groups, or a part of one, never
    smaller ones. Parallelism from outside replaces `normalize` where groups span ranks.
    """

    def __init__(self, width: int, group_size: int, eps: float) -> None:
        super().__init__()
        self.group_size, self.eps = group_size, eps
        self.normalize: Callable[..., Tensor] = gated_rms_norm
        add_parameter(self, "weight", (width,), Declaration(Role.NORM, init=constant(1.0)))

    def forward(self, y_BSI: Tensor, z_BSI: Tensor) -> Tensor:
        """y, z: one float dtype [B, S, I], I channels of this rank -> the same."""
        return self.normalize(y_BSI, z_BSI, self.weight, self.group_size, self.eps)


class Mamba2(nn.Module):
    """out(norm(ssd(conv(x), dt, conv(B), conv(C)), gate z)) (https://arxiv.org/abs/2405.21060, section 7.1).

    settings: the recipe's mamba section with d_state filled; head_dim divides d_inner, num_groups the heads.
    Parallelism from outside replaces `scan` where ranks hold parts of a sequence, and `own_groups`, which picks the
    groups [B, S, G, N] that the heads here read, where all ranks hold all of them.
    """

    def __init__(self, d_model: int, settings, norm_eps: float) -> None:
        super().__init__()
        d_inner = round(settings.expand * d_model)
        num_heads, d_groups = d_inner // settings.head_dim, settings.num_groups * settings.d_state
        self.head_dim, self.d_state, self.chunk_size = settings.head_dim, settings.d_state, settings.chunk_size
        self.scan: Callable[..., tuple[Tensor, Tensor]] = ssd
        self.own_groups: Callable[[Tensor], Tensor] = all_of
        self.z = Linear(d_model, d_inner, Role.SSM_Z)
        self.x = Linear(d_model, d_inner, Role.SSM_X)
        self.B = Linear(d_model, d_groups, Role.SSM_B)
        self.C = Linear(d_model, d_groups, Role.SSM_C)
        self.dt = Linear(d_model, num_heads, Role.SSM_DT)
        self.conv_x = CausalConvolution(d_inner, settings.d_conv)
        self.conv_B = CausalConvolution(d_groups, settings.d_conv)
        self.conv_C = CausalConvolution(d_groups, settings.d_conv)
        self.dynamics = Dynamics((num_heads,), log_of_uniform_rate)
        self.norm = GatedRMSNorm(d_inner, d_inner // settings.num_groups, norm_eps)
        self.out = Linear(d_inner, d_model, Role.SSM_OUT, writes_residual=True)

    def forward(self, x_BSD: Tensor, context: Context, cache: SSMCache | None = None) -> Tensor:
        """x_BSD -> y_BSD of the same dtype; with a cache, x follows the tokens that it holds."""
        assert cache is None or context.document_BS is None, "a cache holds one document a row"
        before, tails = cache or SSMCache(), {}
        x_BSI, tails["x"] = self.conv_x(self.x(x_BSD), context, before.tails.get("x"))
        B_BSI, tails["B"] = self.conv_B(self.B(x_BSD), context, before.tails.get("B"))
        C_BSI, tails["C"] = self.conv_C(self.C(x_BSD), context, before.tails.get("C"))
        x_BSHP = x_BSI.unflatten(-1, (-1, self.head_dim))
        B_BSGN, C_BSGN = (self.own_groups(groups.unflatten(-1, (-1, self.d_state))) for groups in (B_BSI, C_BSI))
        dt_BSH, A_H, D_H = self.dynamics(self.dt(x_BSD))
        if before.state is not None and x_BSD.shape[1] == 1:
            token = (x_BSHP[:, 0], dt_BSH[:, 0], A_H, B_BSGN[:, 0], C_BSGN[:, 0], D_H)
            y_BHP, state_BHPN = ssd_step(*token, before.state)
            y_BSHP = y_BHP[:, None]
        else:
            y_BSHP, state_BHPN = self.scan(
                x_BSHP, dt_BSH, A_H, B_BSGN, C_BSGN, D_H, self.chunk_size, context.document_BS, before.state
            )
        if cache is not None:
            cache.state, cache.tails = state_BHPN, tails
        return self.out(self.norm(y_BSHP.flatten(2), self.z(x_BSD)))

    def new_cache(self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype) -> SSMCache:
        """An empty cache; it takes its size, device and dtype from the first tokens, and none grows with max_len."""
        return SSMCache()


def log_of_uniform_rate(tensor_H: Tensor, generator: torch.Generator) -> None:
    """Fill with the logarithm of rates uniform in [1, 16]."""
    tensor_H.uniform_(1.0, 16.0, generator=generator).log_()
