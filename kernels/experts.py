"""The feed-forward experts of a mixture-of-experts layer, from tokens to tokens.

T tokens, D model width, E experts, F width of an expert, M routed rows, sorted by expert. In a block of experts, E and
M count the block's alone.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.activations import ACTIVATIONS
from kernels.grouped_matmul import expert_blocks


def expert_ffn(
    x_TD: Tensor, token_M: Tensor, gate_M: Tensor, counts_E: Tensor,
    gate_EFD: Tensor | None, up_EFD: Tensor, down_EDF: Tensor, activation: str,
) -> Tensor:
    """Gather each row's token, apply its expert, add the output times the row's gate to the token: y_TD.

    An expert is down(act(up x)), or down(silu(gate x) * up x) where gate_EFD is given (https://arxiv.org/abs/2002.05202).
    Row m is token token_M[m] (int64); rows are sorted by expert, counts_E (int64) each. A token may own any number of
    rows, none too: its output is then zero. x and the matrices share one dtype (float32, float64 or bfloat16), in which
    products are taken; gates are float32 or wider. Outputs are summed over a token's rows in float32 at least and
    returned in the dtype of x.

    Differentiable once in x, the gates and the matrices; an expert without rows gets a gradient of exactly zero.
    """
    return _ExpertFFN.apply(x_TD, token_M, gate_M, counts_E, gate_EFD, up_EFD, down_EDF, activation)


class _ExpertFFN(torch.autograd.Function):
    """Works block by block. Keeps the hidden layers of width F, and gathers the rows of width D again in the backward.

    The gate weights the narrow hidden layer, which is the same as weighting the expert's wide output.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_TD: Tensor, token_M: Tensor, gate_M: Tensor, counts_E: Tensor,
        gate_EFD: Tensor | None, up_EFD: Tensor, down_EDF: Tensor, activation: str,
    ) -> Tensor:
        ctx.blocks, ctx.activation = list(expert_blocks(counts_E)), ACTIVATIONS[activation]
        y_TD, hidden = _zero_sum(x_TD), []
        for block in ctx.blocks:
            token, weight_M1 = token_M[block.rows], gate_M[block.rows, None].to(x_TD.dtype)
            x_MD = x_TD.index_select(0, token)
            up_MF = block.multiply(x_MD, up_EFD[block.experts].transpose(1, 2))
            if gate_EFD is None:
                hidden_MF = ctx.activation.forward(up_MF)
                hidden.append(up_MF)
            else:
                gated_MF = block.multiply(x_MD, gate_EFD[block.experts].transpose(1, 2))
                hidden_MF = ctx.activation.forward(gated_MF).mul_(up_MF)
                hidden += [gated_MF, up_MF]
            y_MD = block.multiply(hidden_MF.mul_(weight_M1), down_EDF[block.experts].transpose(1, 2))
            y_TD.index_add_(0, token, y_MD.to(y_TD.dtype))
        ctx.save_for_backward(x_TD, token_M, gate_M, gate_EFD, up_EFD, down_EDF, *hidden)
        return y_TD.to(x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, token_M, gate_M, gate_EFD, up_EFD, down_EDF, *hidden = ctx.saved_tensors
        hidden = iter(hidden)
        dx_TD, dgate_M = _zero_sum(x_TD), torch.empty_like(gate_M)
        dgate_EFD = None if gate_EFD is None else torch.empty_like(gate_EFD)
        dup_EFD, ddown_EDF = torch.empty_like(up_EFD), torch.empty_like(down_EDF)
        for block in ctx.blocks:
            token, weight_M1 = token_M[block.rows], gate_M[block.rows, None].to(x_TD.dtype)
            dy_MD, x_MD = dy_TD.index_select(0, token), x_TD.index_select(0, token)
            gated_MF = None if gate_EFD is None else next(hidden)
            up_MF = next(hidden)

            activated_MF = ctx.activation.forward(up_MF if gated_MF is None else gated_MF)
            hidden_MF = activated_MF if gated_MF is None else activated_MF * up_MF
            dhidden_MF = block.multiply(dy_MD, down_EDF[block.experts])
            torch.sum(dhidden_MF * hidden_MF, 1, dtype=gate_M.dtype, out=dgate_M[block.rows])
            block.outer(ddown_EDF[block.experts], dy_MD, hidden_MF.mul_(weight_M1))
            dhidden_MF *= weight_M1
            if gated_MF is None:
                dup_MF = ctx.activation.backward(dhidden_MF, up_MF)
                dx_MD = block.multiply(dup_MF, up_EFD[block.experts])
            else:
                dup_MF = activated_MF.mul_(dhidden_MF)
                dgated_MF = ctx.activation.backward(dhidden_MF.mul_(up_MF), gated_MF)
                block.outer(dgate_EFD[block.experts], dgated_MF, x_MD)
                dx_MD = block.multiply(dup_MF, up_EFD[block.experts])
                block.add_multiply(dx_MD, dgated_MF, gate_EFD[block.experts])
            block.outer(dup_EFD[block.experts], dup_MF, x_MD)
            dx_TD.index_add_(0, token, dx_MD.to(dx_TD.dtype))
        return dx_TD.to(x_TD.dtype), None, dgate_M, None, dgate_EFD, dup_EFD, ddown_EDF, None


def _zero_sum(like_TD: Tensor) -> Tensor:
    """Where rows are summed, in float32 at least."""
    return torch.zeros(like_TD.shape, dtype=torch.promote_types(like_TD.dtype, torch.float32), device=like_TD.device)
