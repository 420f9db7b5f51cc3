"""Root-mean-square normalisation over groups of channels that ranks share.

I channels of all ranks, L of them on this one, G groups.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from parallel.collectives import all_reduce


def normalize_groups(x_L: Tensor, group_size: int, eps: float, group: dist.ProcessGroup) -> Tensor:
    """x / sqrt(mean(x^2) + eps), the mean over the group_size channels of a group, whichever ranks hold them.

    x_L: [..., L], float32 or float64; rank r of the process group holds the r-th of equal runs of the I channels.
    Groups are runs of group_size channels among all I. A rank may hold parts of groups, a whole one, or several.
    """
    start = group.rank() * x_L.shape[-1]
    num_groups = group.size() * x_L.shape[-1] // group_size
    first_group, lengths = group_parts(start, x_L.shape[-1], group_size)
    parts = x_L.split(lengths, -1)
    own = torch.stack([part.square().sum(-1) for part in parts], -1)
    # Zeros for the groups of other ranks, so that one sum serves every way in which groups and ranks may overlap.
    after = num_groups - first_group - len(lengths)
    squares_G = all_reduce(F.pad(own, (first_group, after)), group)
    scale = (squares_G.narrow(-1, first_group, len(lengths)) / group_size + eps).rsqrt()
    return torch.cat([part * factor for part, factor in zip(parts, scale.split(1, -1), strict=True)], -1)


def gated_normalize_groups(
    y_L: Tensor, z_L: Tensor, weight_L: Tensor, group_size: int, eps: float, group: dist.ProcessGroup
) -> Tensor:
    """`kernels.gated_rms_norm` of channels that ranks share, as in `normalize_groups`. The result has y's dtype."""
    wide = torch.promote_types(y_L.dtype, torch.float32)
    normed_L = normalize_groups(y_L.to(wide) * F.silu(z_L.to(wide)), group_size, eps, group)
    return (normed_L * weight_L.to(wide)).to(y_L.dtype)


def group_parts(start: int, length: int, group_size: int) -> tuple[int, list[int]]:
    """The first group that a run of channels touches, and how many of the run's channels lie in it and each next."""
    first, last = start // group_size, (start + length - 1) // group_size
    edges = [start, *(group * group_size for group in range(first + 1, last + 1)), start + length]
    return first, [end - begin for begin, end in zip(edges, edges[1:], strict=False)]
