"""The Mamba-1 block.

B batch, S sequence, D model width, I inner width, R rank of dt, N state.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.model.context import Context
from framework.model.linear import Linear
from framework.model.norm import RMSNorm
from framework.model.ssm import CausalConvolution, Dynamics, SSMCache, uniform
from framework.parametrization.roles import Role
from kernels import selective_scan, selective_step


class Mamba1(nn.Module):
    """out(scan(conv(x)) * silu(z)), the scan's dt, B and C made of conv(x) (https://arxiv.org/abs/2312.00752, fig. 3).

    settings: the recipe's mamba section with d_state and dt_rank filled. inner_norms: RMSNorm on the low-rank dt, B
    and C (Jamba, https://arxiv.org/abs/2403.19887). Parallelism from outside replaces `scan` where ranks hold parts of
    a sequence.
    """

    def __init__(self, d_model: int, settings, norm_eps: float) -> None:
        super().__init__()
        d_inner, d_state, dt_rank = round(settings.expand * d_model), settings.d_state, settings.dt_rank
        self.chunk_size = settings.chunk_size
        self.scan: Callable[..., tuple[Tensor, Tensor]] = selective_scan
        self.z = Linear(d_model, d_inner, Role.SSM_Z)
        self.x = Linear(d_model, d_inner, Role.SSM_X)
        self.conv = CausalConvolution(d_inner, settings.d_conv)
        self.B = Linear(d_inner, d_state, Role.SSM_B)
        self.C = Linear(d_inner, d_state, Role.SSM_C)
        self.dt_low = Linear(d_inner, dt_rank, Role.SSM_DT)
        self.dt = Linear(dt_rank, d_inner, Role.SSM_DT, init=uniform(dt_rank**-0.5))
        self.dynamics = Dynamics((d_inner, d_state), log_of_state_index)
        self.out = Linear(d_inner, d_model, Role.SSM_OUT, writes_residual=True)
        self.inner_norms = settings.inner_norms
        if settings.inner_norms:
            self.dt_norm = RMSNorm(dt_rank, norm_eps)
            self.B_norm = RMSNorm(d_state, norm_eps)
            self.C_norm = RMSNorm(d_state, norm_eps)

    def forward(self, x_BSD: Tensor, context: Context, cache: SSMCache | None = None) -> Tensor:
        """x_BSD -> y_BSD of the same dtype; with a cache, x follows the tokens that it holds."""
        assert cache is None or context.document_BS is None, "a cache holds one document a row"
        before = cache or SSMCache()
        x_BSI, tail_BKI = self.conv(self.x(x_BSD), context, before.tails.get("x"))
        dt_BSR, B_BSN, C_BSN = self.dt_low(x_BSI), self.B(x_BSI), self.C(x_BSI)
        if self.inner_norms:
            dt_BSR, B_BSN, C_BSN = self.dt_norm(dt_BSR), self.B_norm(B_BSN), self.C_norm(C_BSN)
        dt_BSI, A_IN, D_I = self.dynamics(self.dt(dt_BSR))
        if before.state is not None and x_BSI.shape[1] == 1:
            token = (x_BSI[:, 0], dt_BSI[:, 0], A_IN, B_BSN[:, 0], C_BSN[:, 0], D_I)
            y_BI, state_BIN = selective_step(*token, before.state)
            y_BSI = y_BI[:, None]
        else:
            y_BSI, state_BIN = self.scan(
                x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, self.chunk_size, context.document_BS, before.state
            )
        if cache is not None:
            cache.state, cache.tails = state_BIN, {"x": tail_BKI}
        return self.out(y_BSI * F.silu(self.z(x_BSD)))

    def new_cache(self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype) -> SSMCache:
        """An empty cache; it takes its size, device and dtype from the first tokens, and none grows with max_len."""
        return SSMCache()


def log_of_state_index(tensor_IN: Tensor, generator: torch.Generator) -> None:
    """Fill with log(1..N) per channel, so that A[i, n] = -(n + 1) (S4D-real)."""
    tensor_IN.copy_(torch.arange(1, tensor_IN.shape[1] + 1, device=tensor_IN.device).log())
