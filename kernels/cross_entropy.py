"""Unembedding and cross entropy in one, without ever holding all logits.

T tokens, D model width, V vocabulary, C tokens of a chunk.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

IGNORED = -100
# On a CPU a chunk's logits (8 MB in float32) stay in cache between the passes over them; a GPU wants large products.
CHUNK_LOGITS = {"cpu": 2**21, "cuda": 2**28}

ChunkLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def linear_cross_entropy(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, logit_scale: float = 1.0) -> Tensor:
    """Sum over tokens of -log softmax(logit_scale * weight x)[target], in nats: a scalar.

    targets_T: int64, -100 where a token is left out. Products are taken in the dtype of x (float32, float64 or
    bfloat16), softmax and sums in float32 at least, which is the dtype of the result. Gradients are computed in the
    forward, chunk by chunk, and only scaled in the backward, so that no [T, V] tensor ever exists. Differentiable once,
    in x and weight.
    """
    return in_chunks(x_TD, weight_VD, targets_T, logit_scale, chunk_cross_entropy, weight_VD.shape[0])


def in_chunks(
    x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, logit_scale: float, chunk_loss: ChunkLoss, num_logits: int
) -> Tensor:
    """`linear_cross_entropy` with another chunk's loss, which may know of logits that are elsewhere.

    chunk_loss: as `chunk_cross_entropy`. num_logits: of a token, by which the chunks are sized.
    """
    needs_gradient = torch.is_grad_enabled() and (x_TD.requires_grad or weight_VD.requires_grad)
    size = max(1, CHUNK_LOGITS[x_TD.device.type] // num_logits)
    return _LinearCrossEntropy.apply(x_TD, weight_VD, targets_T, logit_scale, chunk_loss, size, needs_gradient)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, logit_scale: float, chunk_loss: ChunkLoss,
        size: int, needs_gradient: bool,
    ) -> Tensor:
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        matrix_VD = weight_VD.to(x_TD.dtype)
        dx_TD = torch.empty_like(x_TD)
        dweight_VD = torch.zeros_like(weight_VD, dtype=dtype) if needs_gradient else None
        loss = torch.zeros((), dtype=dtype, device=x_TD.device)
        # One for all chunks: fresh memory of this size costs a page fault for every 4 KB of it.
        buffer_CV = x_TD.new_empty(min(size, x_TD.shape[0]), matrix_VD.shape[0])
        for x_CD, target_C, dx_CD in zip(x_TD.split(size), targets_T.split(size), dx_TD.split(size), strict=True):
            logits_CV = torch.mm(x_CD, matrix_VD.t(), out=buffer_CV[: x_CD.shape[0]]).to(dtype)
            if logit_scale != 1.0:
                logits_CV *= logit_scale
            loss_C, dlogits_CV = chunk_loss(logits_CV, target_C)
            loss += loss_C.masked_fill_(target_C == IGNORED, 0.0).sum()
            if needs_gradient:
                _add_gradients(dx_CD, dweight_VD, dlogits_CV.to(x_TD.dtype), x_CD, matrix_VD, target_C, logit_scale)
        if needs_gradient:
            ctx.save_for_backward(dx_TD, dweight_VD.to(weight_VD.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dx_TD, dweight_VD = ctx.saved_tensors
        return dx_TD * dloss.to(dx_TD.dtype), dweight_VD * dloss.to(dweight_VD.dtype), *[None] * 5


def chunk_cross_entropy(logits_CV: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's loss [C], and softmax minus one-hot, which overwrites the logits.

    Both are computed for tokens left out too, with any target, and masked by who asks.
    """
    index_C1 = target_C.clamp(min=0)[:, None]
    torch.log_softmax(logits_CV, 1, out=logits_CV)
    loss_C1 = -logits_CV.gather(1, index_C1)
    minus_one_C1 = torch.full_like(loss_C1, -1.0)
    return loss_C1[:, 0], logits_CV.exp_().scatter_add_(1, index_C1, minus_one_C1)


def _add_gradients(
    dx_CD: Tensor, dweight_VD: Tensor, dlogits_CV: Tensor, x_CD: Tensor, matrix_VD: Tensor, target_C: Tensor,
    scale: float,
) -> None:
    """Fill dx and add to dweight. Tokens left out are masked here, on width D, and not on all V logits."""
    left_out_C1 = (target_C == IGNORED)[:, None]
    dx_CD.copy_((dlogits_CV @ matrix_VD).mul_(scale).masked_fill_(left_out_C1, 0.0))
    kept_CD = (x_CD * scale).masked_fill_(left_out_C1, 0.0)
    if dweight_VD.dtype == kept_CD.dtype:
        dweight_VD.addmm_(dlogits_CV.t(), kept_CD)
    else:
        dweight_VD += dlogits_CV.t() @ kept_CD
