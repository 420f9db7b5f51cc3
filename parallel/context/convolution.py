"""The short causal convolution of a sequence in parts: each rank hands its last inputs to the next.

B batch, S tokens of this rank's part, C channels, K taps.
"""

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from kernels import causal_convolution
from parallel.context.neighbours import from_previous
from parallel.context.part import own_part, part_size


def convolve_parts(
    x_BSC: Tensor, weight_CK: Tensor, bias_C: Tensor, document_BS: Tensor | None = None, tail_BKC: None = None,
    *, cp: DeviceMesh,
) -> tuple[Tensor, Tensor]:
    """`kernels.causal_convolution` of this rank's part; document_BS is the whole sequence's, [B, S*cp].

    Raises ValueError where a part has fewer than K-1 tokens: its inputs would reach beyond the next rank.
    """
    assert tail_BKC is None, "a sequence in parts starts at its beginning"
    num_before, seq_len = weight_CK.shape[1] - 1, x_BSC.shape[1]
    if seq_len < num_before:
        raise ValueError(f"{seq_len} tokens on each of cp={cp.size()} ranks, but the convolution reaches back "
                         f"{num_before}")
    if num_before:
        tail_BKC = from_previous(x_BSC[:, seq_len - num_before :], cp.get_group())
        if document_BS is not None:
            tail_BKC = _of_first_document(tail_BKC, document_BS, cp)
    return causal_convolution(x_BSC, weight_CK, bias_C, own_part(document_BS, cp), tail_BKC)


def _of_first_document(tail_BKC: Tensor, document_BS: Tensor, cp: DeviceMesh) -> Tensor:
    """Zeros for the inputs before this part that belong to another document than its first token."""
    start = cp.get_local_rank() * part_size(document_BS.shape[1], cp)
    if start == 0:
        return tail_BKC  # zeros, as nothing is before
    same_BK = document_BS[:, start - tail_BKC.shape[1] : start] == document_BS[:, start, None]
    return torch.where(same_BK[..., None], tail_BKC, 0.0)
