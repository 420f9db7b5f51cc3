"""Heads are split over ranks; groups that heads share, fewer than ranks or not dividing by them, are held by all.

H heads, G groups; head h reads group h // (H / G).
"""

from collections.abc import Callable

import torch
from torch import Tensor

GROUP_DIM = 2


def pick_groups(
    num_heads: int, num_groups: int, rank: int, num_ranks: int, device: str
) -> Callable[[Tensor], Tensor]:
    """What picks, of all groups [B, S, G, width], those that the heads of a rank read.

    Rank r has the r-th of equal runs of the heads. The result has one entry for each group where on every rank equally
    many heads read each, else one for each head: either way local head h reads entry h // (local heads / entries).
    device: where the groups will be.
    """
    heads = range(num_heads)
    per_rank = [[head * num_groups // num_heads for head in heads[start : start + num_heads // num_ranks]]
                for start in heads[:: num_heads // num_ranks]]
    if not all(_is_even(groups) for groups in per_rank):
        index = torch.tensor(per_rank[rank], device=device)
        return lambda x: x.index_select(GROUP_DIM, index)
    groups = sorted(set(per_rank[rank]))
    return lambda x: x.narrow(GROUP_DIM, groups[0], len(groups))


def _is_even(groups: list[int]) -> bool:
    """Whether every group that is read at all is read equally often."""
    return len({groups.count(group) for group in groups}) == 1
