"""The short causal convolution in front of a state-space scan.

Shapes: B batch, S sequence, C channels, K taps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_convolution(
    x_BSC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor,
    document_BS: Tensor | None = None,
    tail_BKC: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """SiLU of a depthwise causal convolution: y_t = silu(bias + sum_k weight[:, k] * x_{t - (K - 1) + k}).

    Args:
        x_BSC: inputs of any float dtype; arithmetic is float32 at least.
        weight_CK, bias_C: one filter per channel; the last tap meets the token itself.
        document_BS: int64, non-decreasing along S; inputs of another document count as zero.
        tail_BKC: [B, K-1, C], the inputs before the first, of the first token's document; None: zeros.

    Returns:
        y_BSC of x's dtype, and the last K-1 inputs [B, K-1, C]: the tail of what follows.
    """
    seq_len, num_taps = x_BSC.shape[1], weight_CK.shape[1]
    if tail_BKC is None:
        x_BSC = F.pad(x_BSC, (0, 0, num_taps - 1, 0))
    else:
        assert tail_BKC.shape[1] == num_taps - 1, f"a tail of {tail_BKC.shape[1]} inputs for {num_taps} taps"
        x_BSC = torch.cat([tail_BKC.to(x_BSC.dtype), x_BSC], dim=1)
    wide = torch.promote_types(x_BSC.dtype, torch.float32)
    inputs_BSC, weight_CK = x_BSC.to(wide), weight_CK.to(wide)
    if document_BS is not None:
        padded_document_BS = torch.cat([document_BS[:, :1].expand(-1, num_taps - 1), document_BS], dim=1)

    y_BSC = bias_C.to(wide)
    for tap in range(num_taps):
        tapped_BSC = inputs_BSC[:, tap : tap + seq_len]
        if document_BS is not None and tap < num_taps - 1:
            same_BS = padded_document_BS[:, tap : tap + seq_len] == document_BS
            tapped_BSC = tapped_BSC * same_BS[..., None]
        y_BSC = torch.addcmul(y_BSC, tapped_BSC, weight_CK[:, tap])
    # A copy, so that a cache does not keep all inputs alive.
    return F.silu(y_BSC).to(x_BSC.dtype), x_BSC[:, seq_len:].clone()
