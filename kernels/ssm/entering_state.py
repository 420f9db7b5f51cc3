"""What a state that enters a scan adds to its outputs, by itself: scans are linear in it.

Where a sequence is scanned in parts at one time, each from zero, this completes a part once its state is known.

Shapes: B batch, S sequence, Q tokens of a chunk, H heads, G groups, J heads of a group, P head width, I channels,
N state.
"""

import torch
from torch import Tensor


def ssd_response(elapsed_BSH: Tensor, A_H: Tensor, C_BSGN: Tensor, state_BHPN: Tensor) -> Tensor:
    """y_t = exp(elapsed_t A) h C_t of Mamba-2 (https://arxiv.org/abs/2405.21060, section 6, step 4): [B, S, H, P].

    elapsed_BSH: time steps summed from the first token to each, itself included. C may have any float dtype, the
    others and the result the arithmetic's.
    """
    num_groups = C_BSGN.shape[2]
    state_BGJPN = state_BHPN.unflatten(1, (num_groups, -1))
    read_BSGJP = torch.einsum("bsgn,bgjpn->bsgjp", C_BSGN.to(state_BHPN.dtype), state_BGJPN)
    return read_BSGJP.flatten(2, 3) * (elapsed_BSH * A_H).exp()[..., None]


def selective_response(
    elapsed_BSI: Tensor, A_IN: Tensor, C_BSN: Tensor, state_BIN: Tensor, chunk_size: int = 64
) -> Tensor:
    """y_t = sum over n of exp(elapsed_t A) h C_t, per channel, of Mamba-1: [B, S, I].

    elapsed_BSI: time steps summed from the first token to each, itself included. C may have any float dtype, the
    others and the result the arithmetic's. chunk_size: tokens whose decayed states exist at one time.

    Costs one exponential per token, channel and state, and another in the backward, which keeps the arguments only:
    in elementwise work about half of the scan that it completes.
    """
    return _SelectiveResponse.apply(elapsed_BSI, A_IN.mT.contiguous(), C_BSN, state_BIN.mT, chunk_size)


class _SelectiveResponse(torch.autograd.Function):
    """A and states are [N, I] and [B, N, I]."""

    @staticmethod
    def forward(ctx, elapsed_BSI, A_NI, C_BSN, state_BNI, chunk_size):
        ctx.save_for_backward(elapsed_BSI, A_NI, C_BSN, state_BNI)
        ctx.chunk_size = chunk_size
        chunks = zip(elapsed_BSI.split(chunk_size, 1), C_BSN.to(A_NI.dtype).split(chunk_size, 1), strict=True)
        return torch.cat([
            (C_BQN[:, :, None] @ (_decays(elapsed_BQI, A_NI) * state_BNI[:, None])).squeeze(2)
            for elapsed_BQI, C_BQN in chunks
        ], dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy_BSI):
        elapsed_BSI, A_NI, C_BSN, state_BNI = ctx.saved_tensors
        delapsed_BSI, dC_BSN = torch.empty_like(elapsed_BSI), torch.empty_like(C_BSN)
        dA_NI, dstate_BNI = torch.zeros_like(A_NI), torch.zeros_like(state_BNI)
        for start in range(0, dy_BSI.shape[1], ctx.chunk_size):
            chunk = slice(start, start + ctx.chunk_size)
            elapsed_BQI, C_BQN, dy_BQI = elapsed_BSI[:, chunk], C_BSN[:, chunk].to(A_NI.dtype), dy_BSI[:, chunk]
            decay_BQNI = _decays(elapsed_BQI, A_NI)
            dC_BSN[:, chunk] = ((decay_BQNI * state_BNI[:, None]) @ dy_BQI[..., None]).squeeze(-1)
            # First the gradient of the decayed state, then of the exponent.
            gradient_BQNI = decay_BQNI.mul_(C_BQN[..., None]).mul_(dy_BQI[:, :, None])
            dstate_BNI += gradient_BQNI.sum(1)
            gradient_BQNI *= state_BNI[:, None]
            delapsed_BSI[:, chunk] = (gradient_BQNI * A_NI).sum(2)
            dA_NI += gradient_BQNI.mul_(elapsed_BQI[:, :, None]).sum((0, 1))
        return delapsed_BSI, dA_NI, dC_BSN, dstate_BNI, None


def _decays(elapsed_BQI: Tensor, A_NI: Tensor) -> Tensor:
    """exp(elapsed A), [B, Q, N, I]."""
    return (elapsed_BQI[:, :, None] * A_NI).exp_()
