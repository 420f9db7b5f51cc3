"""Unembedding and cross entropy in one, without ever holding all logits.

T tokens, D model width, V vocabulary, W the width of its products, C tokens of a chunk.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.cross_entropy_rows import RowLosses, cross_entropy_rows

# On a CPU a chunk's logits (8 MB in float32) stay in cache between the passes over them; a GPU wants large products
# (1 GB in bfloat16: 4096 rows or more up to a vocabulary of 128 k).
CHUNK_LOGITS = {"cpu": 2**21, "cuda": 2**29}
TILE = 128
"""Tokens of which a GPU's chunks are multiples: whole tiles of its products, and one compilation of what takes rows."""
ALIGNED = 16
"""Logits of 16 bits of which rows on a GPU are multiples. With GPT-2's 50257, which is none, the head took four times
as long for its floor as with 50304, and Triton reads 16 bytes at once only where rows begin at multiples of them."""

RowLoss = Callable[[Tensor, Tensor, bool], RowLosses]


def linear_cross_entropy(
    x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, logit_scale: float = 1.0, z_loss_weight: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Sum over tokens of -log softmax(logit_scale * weight x)[target], in nats: a scalar.

    targets_T: int64, -100 where a token is left out. Products are taken in the dtype of x (float32, float64 or
    bfloat16), softmax and sums in float32 at least, which is the dtype of the result. z_loss_weight adds that many
    times logsumexp(logit_scale * weight x)^2 of each token. Gradients are computed in the forward, chunk by chunk, and
    only scaled in the backward, so that no [T, V] tensor ever exists; the weight's is summed over chunks in float32 at
    least. Differentiable once, in x and weight.
    """
    def row_loss(logits_CV: Tensor, target_C: Tensor, needs_gradient: bool) -> RowLosses:
        return cross_entropy_rows(logits_CV, target_C, logit_scale, z_loss_weight, needs_gradient, backend)

    return in_chunks(x_TD, weight_VD, targets_T, row_loss, weight_VD.shape[0])


def in_chunks(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, row_loss: RowLoss, num_logits: int) -> Tensor:
    """`linear_cross_entropy` with another loss of a chunk's rows, which may know of logits that are elsewhere.

    row_loss: of a chunk's logits, its targets and whether the gradient is asked for. num_logits: of a token, by which
    the chunks are sized.
    """
    needs_gradient = torch.is_grad_enabled() and (x_TD.requires_grad or weight_VD.requires_grad)
    size = max(1, CHUNK_LOGITS.get(x_TD.device.type, CHUNK_LOGITS["cuda"]) // num_logits)
    if not x_TD.is_cpu and size >= TILE:
        size -= size % TILE
    return _LinearCrossEntropy.apply(x_TD, weight_VD, targets_T, row_loss, size, needs_gradient)


def product_width(x_TD: Tensor, num_logits: int) -> int:
    """How many logits of a token are computed: on a GPU and in 16 bits a multiple of ALIGNED."""
    if x_TD.is_cpu or x_TD.element_size() > 2:
        return num_logits
    return -(-num_logits // ALIGNED) * ALIGNED


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, row_loss: RowLoss, size: int,
        needs_gradient: bool,
    ) -> Tensor:
        dtype, num_logits = torch.promote_types(x_TD.dtype, torch.float32), weight_VD.shape[0]
        width = product_width(x_TD, num_logits)
        matrix_WD = weight_VD.to(x_TD.dtype)
        if width > num_logits:
            # By zeros: logits there are zeros too, nothing writes them, and they add nothing to dx.
            matrix_WD = F.pad(matrix_WD, (0, 0, 0, width - num_logits))
        dx_TD = torch.empty_like(x_TD)
        dweight_WD = torch.zeros_like(matrix_WD, dtype=dtype) if needs_gradient else None
        loss = torch.zeros((), dtype=dtype, device=x_TD.device)
        # One after another in the same memory: fresh memory costs a page fault for every 4 KB of it.
        buffer_CW = x_TD.new_empty(min(size, x_TD.shape[0]), width)
        for x_CD, target_C, dx_CD in zip(x_TD.split(size), targets_T.split(size), dx_TD.split(size), strict=True):
            logits_CW = torch.mm(x_CD, matrix_WD.t(), out=buffer_CW[: x_CD.shape[0]])
            logits_CV = logits_CW[:, :num_logits]
            loss_C, dlogits_CV, factor_C1 = row_loss(logits_CV, target_C, needs_gradient)
            loss += loss_C.sum()
            if needs_gradient:
                in_place = dlogits_CV is logits_CV
                dlogits = logits_CW if in_place else dlogits_CV.to(x_TD.dtype)
                columns = slice(None) if in_place else slice(num_logits)
                _add_gradients(dx_CD, dweight_WD[columns], dlogits, factor_C1, x_CD, matrix_WD[columns])
        if needs_gradient:
            ctx.save_for_backward(dx_TD, dweight_WD[:num_logits].to(weight_VD.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dx_TD, dweight_VD = ctx.saved_tensors
        return _scaled(dx_TD, dloss), _scaled(dweight_VD, dloss), *[None] * 4


def _scaled(gradient: Tensor, dloss: Tensor) -> Tensor:
    """The gradient times a scalar of float32 at least, rounded once: 1 / tokens in bfloat16 is off by up to 0.4 %."""
    # With no dimension the scalar would be taken in the gradient's dtype.
    return torch.mul(gradient, dloss.reshape(1), out=torch.empty_like(gradient))


def _add_gradients(
    dx_CD: Tensor, dweight_WD: Tensor, dlogits_CW: Tensor, factor_C1: Tensor | None, x_CD: Tensor, matrix_WD: Tensor
) -> None:
    """Fill dx and add to dweight. The rows' factor goes onto width D, and not onto all logits."""
    torch.mm(dlogits_CW, matrix_WD, out=dx_CD)
    if factor_C1 is not None:
        dx_CD *= factor_C1
        x_CD = torch.mul(x_CD, factor_C1, out=torch.empty_like(x_CD))
    if dweight_WD.dtype == x_CD.dtype:
        dweight_WD.addmm_(dlogits_CW.t(), x_CD)
    elif x_CD.is_cuda:
        dweight_WD += torch.mm(dlogits_CW.t(), x_CD, out_dtype=dweight_WD.dtype)
    else:
        dweight_WD += dlogits_CW.t() @ x_CD
