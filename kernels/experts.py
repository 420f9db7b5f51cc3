"""The feed-forward experts of a mixture-of-experts layer, from tokens to tokens.

T tokens, D model width, E experts, F width of an expert, M routed rows (sorted by expert).
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.activations import ACTIVATIONS
from kernels.grouped_matmul import RowGroups


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
    """Keeps the two hidden layers of width F, and gathers the rows of width D again in the backward."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_TD: Tensor, token_M: Tensor, gate_M: Tensor, counts_E: Tensor,
        gate_EFD: Tensor | None, up_EFD: Tensor, down_EDF: Tensor, activation: str,
    ) -> Tensor:
        groups = RowGroups(counts_E)
        x_MD = x_TD.index_select(0, token_M)
        up_MF = groups.multiply(x_MD, up_EFD.transpose(1, 2))
        gated_MF = None if gate_EFD is None else groups.multiply(x_MD, gate_EFD.transpose(1, 2))
        ctx.save_for_backward(x_TD, token_M, gate_M, gated_MF, up_MF, gate_EFD, up_EFD, down_EDF)
        ctx.groups, ctx.activation = groups, ACTIVATIONS[activation]

        # The gate weights the narrow hidden layer: the same product as weighting the expert's wide output.
        hidden_MF = _hidden(ctx.activation.forward, gated_MF, up_MF) * gate_M[:, None].to(x_TD.dtype)
        y_MD = groups.multiply(hidden_MF, down_EDF.transpose(1, 2))
        return _sum_rows(y_MD, token_M, x_TD)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, token_M, gate_M, gated_MF, up_MF, gate_EFD, up_EFD, down_EDF = ctx.saved_tensors
        groups, activation = ctx.groups, ctx.activation
        weight_M1 = gate_M[:, None].to(x_TD.dtype)
        dy_MD = dy_TD.index_select(0, token_M)

        activated_MF = activation.forward(up_MF if gated_MF is None else gated_MF)
        hidden_MF = activated_MF if gated_MF is None else activated_MF * up_MF
        dhidden_MF = groups.multiply(dy_MD, down_EDF)
        dgate_M = (dhidden_MF * hidden_MF).sum(1, dtype=gate_M.dtype)
        ddown_EDF = groups.outer(dy_MD, hidden_MF * weight_M1)
        dhidden_MF *= weight_M1

        x_MD = x_TD.index_select(0, token_M)
        if gated_MF is None:
            dup_MF, dgate_EFD = activation.backward(dhidden_MF, up_MF), None
            dx_MD = groups.multiply(dup_MF, up_EFD)
        else:
            dup_MF = dhidden_MF * activated_MF
            dgated_MF = activation.backward(dhidden_MF.mul_(up_MF), gated_MF)
            dgate_EFD = groups.outer(dgated_MF, x_MD)
            dx_MD = groups.add_multiply(groups.multiply(dup_MF, up_EFD), dgated_MF, gate_EFD)
        dup_EFD = groups.outer(dup_MF, x_MD)
        return _sum_rows(dx_MD, token_M, x_TD), None, dgate_M, None, dgate_EFD, dup_EFD, ddown_EDF, None


def _hidden(activation, gated_MF: Tensor | None, up_MF: Tensor) -> Tensor:
    return activation(up_MF) if gated_MF is None else activation(gated_MF).mul_(up_MF)


def _sum_rows(rows_MD: Tensor, token_M: Tensor, like_TD: Tensor) -> Tensor:
    """Each token's rows summed in float32 at least, in the shape and dtype of like_TD."""
    dtype = torch.promote_types(like_TD.dtype, torch.float32)
    sum_TD = torch.zeros(like_TD.shape, dtype=dtype, device=like_TD.device)
    return sum_TD.index_add_(0, token_M, rows_MD.to(dtype)).to(like_TD.dtype)
