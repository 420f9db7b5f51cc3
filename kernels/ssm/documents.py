"""Where the documents packed into one sequence begin."""

import torch
from torch import Tensor


def document_starts(document_BS: Tensor) -> Tensor:
    """True where a token's document differs from that of the token before it; bool [B, S].

    The first token starts nothing: whatever precedes the sequence (a state, a convolution's tail) is of its document.
    """
    starts_BS = torch.zeros_like(document_BS, dtype=torch.bool)
    starts_BS[:, 1:] = document_BS[:, 1:] != document_BS[:, :-1]
    return starts_BS
