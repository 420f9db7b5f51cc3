"""The feed-forward experts of a mixture-of-experts layer, from tokens to tokens.

T tokens, D model width, E experts, F width of an expert, M routed rows, sorted by expert (inside a block of
experts, the block's).
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.activations import ACTIVATIONS, Activation
from kernels.backend import runs_triton
from kernels.moe.fused_experts import Matrices, fused_expert_ffn
from kernels.moe.grouped_matmul import expert_blocks
from kernels.moe.rows import TokenRows, rows_of_tokens


def expert_ffn(
    x_TD: Tensor, token_M: Tensor, gate_M: Tensor, counts_E: Tensor,
    gate_EFD: Tensor | None, up_EFD: Tensor, down_EDF: Tensor, activation: str,
    rows: TokenRows | None = None, weight_gradients: Matrices | None = None, backend: str = "auto",
) -> Tensor:
    """Gather each row's token, apply its expert, add the output times the row's gate to the token: y_TD.

    An expert is down(act(up x)), or down(silu(gate x) * up x) where gate_EFD is given (https://arxiv.org/abs/2002.05202).
    Row m is token token_M[m] (int64); rows are sorted by expert, counts_E (int64) each. A token may own any number of
    rows, none too: its output is then zero. x and the matrices share one dtype (float32, float64 or bfloat16), in which
    products are taken; gates are float32 or wider. Outputs are summed over a token's rows in float32 at least and
    returned in the dtype of x.

    Differentiable once in x, the gates and the matrices; an expert without rows gets a gradient of exactly zero.
    weight_gradients: contiguous float32 buffers of the matrices' shapes (None where a matrix is), to which their
    gradients are added in float32, by PyTorch's body after rounding; autograd then gets none for them.

    Triton's body keeps x, the layers of width F before the activation, gates and indices. It makes the host wait for
    nothing: rows may be more than counts_E counts, and what comes after these (its gates' gradients too) it leaves
    alone. rows: those of each token, made of token_M where they are not given; only this body asks.
    """
    if runs_triton(backend, x_TD, gate_M, gate_EFD, up_EFD, down_EDF):
        rows = rows or rows_of_tokens(token_M, len(x_TD), counts_E.sum())
        matrices = gate_EFD, up_EFD, down_EDF
        return fused_expert_ffn(x_TD, token_M, gate_M, counts_E, matrices, activation, rows, weight_gradients)
    return _ExpertFFN.apply(x_TD, token_M, gate_M, counts_E, gate_EFD, up_EFD, down_EDF, activation, weight_gradients)


class _ExpertFFN(torch.autograd.Function):
    """Works block by block. Keeps the layers of width F, and gathers rows of width D again in the backward.

    A row's gate weights the narrow hidden layer, which is the same as weighting the expert's wide output.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_TD: Tensor, token_M: Tensor, gate_M: Tensor, counts_E: Tensor,
        gate_EFD: Tensor | None, up_EFD: Tensor, down_EDF: Tensor, activation: str, weight_gradients: Matrices | None,
    ) -> Tensor:
        ctx.weight_gradients = weight_gradients
        ctx.blocks, ctx.activation = list(expert_blocks(counts_E)), ACTIVATIONS[activation]
        y_TD, layers = _zero_sum(x_TD), []
        for block in ctx.blocks:
            x_MD = x_TD.index_select(0, token_M[block.rows])
            up_MF = block.multiply(x_MD, up_EFD.transpose(1, 2))
            gated_MF = None if gate_EFD is None else block.multiply(x_MD, gate_EFD.transpose(1, 2))
            hidden_MF, _ = _hidden(ctx.activation, gated_MF, up_MF)
            hidden_MF *= gate_M[block.rows, None]
            y_MD = block.multiply(hidden_MF, down_EDF.transpose(1, 2))
            y_TD.index_add_(0, token_M[block.rows], y_MD.to(y_TD.dtype))
            layers += [gated_MF, up_MF]
        ctx.save_for_backward(x_TD, token_M, gate_M, gate_EFD, up_EFD, down_EDF, *layers)
        return y_TD.to(x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, token_M, gate_M, gate_EFD, up_EFD, down_EDF, *layers = ctx.saved_tensors
        dx_TD, dgate_M = _zero_sum(x_TD), torch.empty_like(gate_M)
        dgate_EFD = None if gate_EFD is None else torch.empty_like(gate_EFD)
        dup_EFD, ddown_EDF = torch.empty_like(up_EFD), torch.empty_like(down_EDF)
        learns = ctx.weight_gradients is not None or any(ctx.needs_input_grad[4:7])
        for block, gated_MF, up_MF in zip(ctx.blocks, layers[::2], layers[1::2], strict=True):
            weight_M1 = gate_M[block.rows, None]
            dy_MD = dy_TD.index_select(0, token_M[block.rows])
            hidden_MF, activated_MF = _hidden(ctx.activation, gated_MF, up_MF)
            dhidden_MF = block.multiply(dy_MD, down_EDF)
            torch.sum(dhidden_MF * hidden_MF, 1, dtype=gate_M.dtype, out=dgate_M[block.rows])
            if learns:
                block.outer(ddown_EDF, dy_MD, hidden_MF.mul_(weight_M1))

            dhidden_MF *= weight_M1
            dgated_MF, dup_MF = _hidden_backward(ctx.activation, dhidden_MF, activated_MF, gated_MF, up_MF)
            x_MD = x_TD.index_select(0, token_M[block.rows])
            dx_MD = block.multiply(dup_MF, up_EFD)
            if dgated_MF is not None:
                block.add_multiply(dx_MD, dgated_MF, gate_EFD)
            if learns:
                block.outer(dup_EFD, dup_MF, x_MD)
            if learns and dgated_MF is not None:
                block.outer(dgate_EFD, dgated_MF, x_MD)
            dx_TD.index_add_(0, token_M[block.rows], dx_MD.to(dx_TD.dtype))
        dmatrices = (dgate_EFD, dup_EFD, ddown_EDF) if learns else (None, None, None)
        if ctx.weight_gradients is not None:
            for buffer, gradient in zip(ctx.weight_gradients, dmatrices, strict=True):
                if buffer is not None:
                    buffer += gradient
            dmatrices = None, None, None
        return dx_TD.to(x_TD.dtype), None, dgate_M, None, *dmatrices, None, None


def _hidden(activation: Activation, gated_MF: Tensor | None, up_MF: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden layer, and what the activation gave: the same tensor where nothing is gated."""
    activated_MF = activation.forward(up_MF if gated_MF is None else gated_MF)
    return (activated_MF if gated_MF is None else activated_MF * up_MF), activated_MF


def _hidden_backward(
    activation: Activation, dhidden_MF: Tensor, activated_MF: Tensor, gated_MF: Tensor | None, up_MF: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Gradients of the gated and the up layer; dhidden and activated are overwritten."""
    if gated_MF is None:
        return None, activation.backward(dhidden_MF, up_MF)
    dup_MF = activated_MF.mul_(dhidden_MF)
    return activation.backward(dhidden_MF.mul_(up_MF), gated_MF), dup_MF


def _zero_sum(like_TD: Tensor) -> Tensor:
    """Where rows are summed, in float32 at least."""
    return torch.zeros(like_TD.shape, dtype=torch.promote_types(like_TD.dtype, torch.float32), device=like_TD.device)
