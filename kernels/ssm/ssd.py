"""Mamba-2's state-space duality: the scan as matrix products within chunks and a recurrence over chunks.

Shapes: B batch, S sequence, Z chunks, Q (and K) tokens of a chunk, H heads, G groups, J heads of a group,
P head width, N state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import runs_triton
from kernels.ssm.documents import document_starts
from kernels.ssm.ssd_operators import SSD


def ssd(
    x_BSHP: Tensor,
    dt_BSH: Tensor,
    A_H: Tensor,
    B_BSGN: Tensor,
    C_BSGN: Tensor,
    D_H: Tensor,
    chunk_size: int = 64,
    document_BS: Tensor | None = None,
    state_BHPN: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Structured state-space duality (https://arxiv.org/abs/2405.21060, section 6).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,  y_t = h_t C_t + D x_t, per head; heads of a group share B and C.

    Args:
        x_BSHP, B_BSGN, C_BSGN: any float dtype; arithmetic is float32 at least. H is a multiple of G.
        dt_BSH: time steps, >= 0. A_H: decay rates, < 0. D_H: the skip's weights.
        chunk_size: tokens of a chunk; changes speed and memory, not the result.
        document_BS: int64, non-decreasing along S; the state is zero at the start of a document.
        state_BHPN: the state before the first token, of its document; None: zeros.

    Returns:
        y_BSHP of x's dtype, and the state after the last token, [B, H, P, N] in the arithmetic's dtype.

    Triton multiplies matrices in the dtype of x, B and C, and sums in float32; it keeps its arguments only.
    """
    if runs_triton(backend, x_BSHP, dt_BSH, B_BSGN, C_BSGN):
        return _triton_ssd(x_BSHP, dt_BSH, A_H, B_BSGN, C_BSGN, D_H, document_BS, state_BHPN)
    num_groups, dtype, wide = B_BSGN.shape[2], x_BSHP.dtype, torch.promote_types(x_BSHP.dtype, torch.float32)
    x_BSHP, dt_BSH, A_H = x_BSHP.to(wide), dt_BSH.to(wide), A_H.to(wide)
    log_decay_BSH = dt_BSH * A_H
    if document_BS is not None:
        log_decay_BSH = log_decay_BSH.masked_fill(document_starts(document_BS)[..., None], -torch.inf)

    value_BZQGJP = _chunks(x_BSHP * dt_BSH[..., None], chunk_size).unflatten(3, (num_groups, -1))
    log_decay_BZGJQ = _chunks(log_decay_BSH, chunk_size).unflatten(3, (num_groups, -1)).movedim(2, -1)
    B_BZQGN, C_BZQGN = _chunks(B_BSGN.to(wide), chunk_size), _chunks(C_BSGN.to(wide), chunk_size)

    decay_BZGJQK = segment_sum(log_decay_BZGJQ).exp()
    scores_BZGQK = torch.einsum("bzqgn,bzkgn->bzgqk", C_BZQGN, B_BZQGN)
    y_BZQGJP = torch.einsum("bzgjqk,bzkgjp->bzqgjp", scores_BZGQK[:, :, :, None] * decay_BZGJQK, value_BZQGJP)

    kept_BZQGJ1 = decay_BZGJQK[..., -1, :].movedim(-1, 2)[..., None]
    added_BZGJPN = torch.einsum("bzqgjp,bzqgn->bzgjpn", value_BZQGJP * kept_BZQGJ1, B_BZQGN)
    decay_BZGJQ = log_decay_BZGJQ.cumsum(-1).exp()
    state_BGJPN = torch.zeros_like(added_BZGJPN[:, 0])
    if state_BHPN is not None:
        state_BGJPN = state_BHPN.to(wide).unflatten(1, (num_groups, -1))
    entering_BZGJPN, state_BGJPN = _scan_chunks(decay_BZGJQ[..., -1], added_BZGJPN, state_BGJPN)
    y_off_BZQGJP = torch.einsum("bzqgn,bzgjpn->bzqgjp", C_BZQGN, entering_BZGJPN)
    y_BZQGJP = y_BZQGJP + y_off_BZQGJP * decay_BZGJQ.movedim(-1, 2)[..., None]

    y_BSHP = y_BZQGJP.flatten(3, 4).flatten(1, 2)[:, : x_BSHP.shape[1]] + x_BSHP * D_H.to(wide)[:, None]
    return y_BSHP.to(dtype), state_BGJPN.flatten(1, 2)


def _triton_ssd(
    x_BSHP: Tensor, dt_BSH: Tensor, A_H: Tensor, B_BSGN: Tensor, C_BSGN: Tensor, D_H: Tensor,
    document_BS: Tensor | None, state_BHPN: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x_BSHP.dtype, torch.promote_types(B_BSGN.dtype, C_BSGN.dtype))
    x, B, C = (tensor.to(dtype).contiguous() for tensor in (x_BSHP, B_BSGN, C_BSGN))
    dt, A, D = (tensor.float().contiguous() for tensor in (dt_BSH, A_H, D_H))
    document_BS = None if document_BS is None else document_BS.contiguous()
    state_BHPN = None if state_BHPN is None else state_BHPN.float().contiguous()
    y_BSHP, final_BHPN = SSD.apply(x, dt, A, B, C, D, document_BS, state_BHPN)
    return y_BSHP.to(x_BSHP.dtype), final_BHPN


def segment_sum(log_decay_Q: Tensor) -> Tensor:
    """sum of log_decay over k = j+1..i at [..., i, j], and -inf where j > i: [..., Q] -> [..., Q, Q].

    Each segment is summed on its own: differences of one cumulative sum would lose digits, and be NaN where a
    document starts (log decay -inf).
    """
    size = log_decay_Q.shape[-1]
    causal_QQ = torch.ones(size, size, dtype=torch.bool, device=log_decay_Q.device).tril()
    terms_QQ = log_decay_Q[..., None].expand(*log_decay_Q.shape, size).masked_fill(~causal_QQ.tril(-1), 0.0)
    return terms_QQ.cumsum(-2).masked_fill(~causal_QQ, -torch.inf)


def ssd_step(
    x_BHP: Tensor, dt_BH: Tensor, A_H: Tensor, B_BGN: Tensor, C_BGN: Tensor, D_H: Tensor, state_BHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of `ssd`: y_BHP of x's dtype and the new state, of the given state's dtype."""
    wide, heads_per_group = state_BHPN.dtype, x_BHP.shape[1] // B_BGN.shape[1]
    wide_x_BHP, dt_BH = x_BHP.to(wide), dt_BH.to(wide)
    B_BHN, C_BHN = (tensor.to(wide).repeat_interleave(heads_per_group, dim=1) for tensor in (B_BGN, C_BGN))
    decay_BH11 = (dt_BH * A_H.to(wide)).exp()[..., None, None]
    state_BHPN = decay_BH11 * state_BHPN + (dt_BH[..., None] * wide_x_BHP)[..., None] * B_BHN[:, :, None]
    y_BHP = (state_BHPN @ C_BHN[..., None]).squeeze(-1) + wide_x_BHP * D_H.to(wide)[:, None]
    return y_BHP.to(x_BHP.dtype), state_BHPN


def _chunks(x_BS: Tensor, chunk_size: int) -> Tensor:
    """[B, S, ...] -> [B, Z, Q, ...], zeros after the end: with dt 0 they leave the state as it is."""
    missing = -x_BS.shape[1] % chunk_size
    padding = [0, 0] * (x_BS.dim() - 2) + [0, missing]
    return F.pad(x_BS, padding).unflatten(1, (-1, chunk_size))


def _scan_chunks(decay_BZGJ: Tensor, added_BZGJPN: Tensor, state_BGJPN: Tensor) -> tuple[Tensor, Tensor]:
    """The states that enter each chunk, [B, Z, G, J, P, N], and the one that leaves the last."""
    entering = []
    for decay_BGJ, added_BGJPN in zip(decay_BZGJ.unbind(1), added_BZGJPN.unbind(1), strict=True):
        entering.append(state_BGJPN)
        state_BGJPN = decay_BGJ[..., None, None] * state_BGJPN + added_BGJPN
    return torch.stack(entering, dim=1), state_BGJPN
