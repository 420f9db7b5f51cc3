"""Routing forced even, for measurements alone.

B batch, S sequence, E experts, K choices per token, T = B * S tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from framework.model.moe import routing
from kernels.moe.router import Routed


@contextmanager
def balanced_routing() -> Iterator[None]:
    """Within the block every router spreads its tokens evenly over the experts, the same way in every forward.

    All else is as it was: logits are made and ranked, and each choice keeps its gate; only the experts' numbers are
    replaced. Experts that choose tokens are even of themselves, and are left alone.
    """
    real = routing.route

    def route(logits_BSE: Tensor, top_k: int, *rest: object, **named: object) -> Routed:
        routed = real(logits_BSE, top_k, *rest, **named)
        index_BSK = even_choices(*logits_BSE.shape, top_k, logits_BSE.device)
        rows_BE = torch.zeros_like(routed.rows_BE)
        rows_BE.scatter_add_(1, index_BSK.flatten(1), torch.ones_like(index_BSK.flatten(1)))
        return routed._replace(index_BSK=index_BSK, rows_BE=rows_BE)

    with patch.object(routing, "route", route):
        yield


def even_choices(batch_size: int, seq_len: int, num_experts: int, top_k: int, device: torch.device) -> Tensor:
    """int64 [B, S, K]: token t of the forward takes experts t, t + E // K, t + 2 (E // K), ... modulo E.

    No two of a token are the same, and over any E tokens in a row every expert gets K rows. A token's experts lie as
    far apart as can be: on expert-parallel ranks each crosses to as many as it has choices.
    """
    token_T1 = torch.arange(batch_size * seq_len, device=device)[:, None]
    choice_K = torch.arange(top_k, device=device) * (num_experts // top_k)
    return ((token_T1 + choice_K) % num_experts).view(batch_size, seq_len, top_k)
