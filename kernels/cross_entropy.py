"""Unembedding and cross entropy in one, without ever holding all logits.

T tokens, D model width, V vocabulary, C tokens of a chunk.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

IGNORED = -100
# 2^21 logits, 8 MB in float32, stay in a CPU's cache between the passes over them; a GPU wants larger products.
CHUNK_LOGITS = {"cpu": 2**21, "cuda": 2**28}


def linear_cross_entropy(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, logit_scale: float = 1.0) -> Tensor:
    """Sum over tokens of -log softmax(logit_scale * weight x)[target], a scalar, in nats.

    Targets are int64; those of -100 are left out. Products are taken in the dtype of x (float32, float64 or bfloat16),
    softmax and sums in float32 at least, which is the dtype of the result. Gradients are computed in the forward, a
    chunk of tokens at a time, and only scaled in the backward, so that no [T, V] tensor exists. Differentiable once,
    in x and weight.
    """
    return _LinearCrossEntropy.apply(x_TD, weight_VD, targets_T, logit_scale)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, logit_scale: float) -> Tensor:
        accumulate = torch.promote_types(x_TD.dtype, torch.float32)
        matrix_VD = weight_VD.to(x_TD.dtype)
        needs_gradient = any(ctx.needs_input_grad)
        dx_TD = torch.empty_like(x_TD) if needs_gradient else None
        dweight_VD = torch.zeros_like(weight_VD, dtype=accumulate) if needs_gradient else None
        loss = torch.zeros((), dtype=accumulate, device=x_TD.device)
        size = max(1, CHUNK_LOGITS[x_TD.device.type] // len(weight_VD))
        for start in range(0, len(x_TD), size):
            chunk = slice(start, start + size)
            x_CD, kept_C = x_TD[chunk], targets_T[chunk] != IGNORED
            logits_CV = (x_CD @ matrix_VD.t()).to(accumulate)
            loss += _chunk_loss(logits_CV, targets_T[chunk], kept_C, logit_scale)
            if needs_gradient:
                factor_C1 = (kept_C * logit_scale)[:, None]
                dlogits_CV = logits_CV.to(x_TD.dtype)
                torch.mul(dlogits_CV @ matrix_VD, factor_C1, out=dx_TD[chunk])
                _add_product(dweight_VD, dlogits_CV.t(), x_CD * factor_C1)
        if needs_gradient:
            ctx.save_for_backward(dx_TD, dweight_VD.to(weight_VD.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dx_TD, dweight_VD = ctx.saved_tensors
        return dx_TD * dloss.to(dx_TD.dtype), dweight_VD * dloss.to(dweight_VD.dtype), None, None
