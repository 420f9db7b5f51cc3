"""DeepSpeed-Ulysses: ranks swap parts of the sequence for heads, and attend to the whole sequence.

B batch, S tokens of this rank's part, H query heads, G key and value heads, P head width.
"""

import math
from collections.abc import Callable

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from parallel.collectives import swap_sharded_dim


def ulysses_attend(
    q_BSHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor, scale: float, window: int | None, document_BS: Tensor | None,
    *, attend: Callable[..., Tensor], cp: DeviceMesh,
) -> Tensor:
    """Causal attention of this rank's queries to the whole sequence: [B, S, H, P] (https://arxiv.org/abs/2309.14509).

    document_BS: of the whole sequence, int64 [B, S*cp]. attend: of the same first six arguments, on one device.
    Sends each query, key, value and output once. Where G does not divide by cp, keys and values are repeated to the
    least multiple of G that does: with G < cp they then cost as much traffic and memory as cp heads.
    Raises ValueError where H does not divide by cp.
    """
    num_ranks, num_heads, num_kv_heads = cp.size(), q_BSHP.shape[2], k_BSGP.shape[2]
    if num_heads % num_ranks:
        raise ValueError(f"cp={num_ranks} must divide the {num_heads} query heads of a rank")
    repeats = num_ranks // math.gcd(num_kv_heads, num_ranks)
    if repeats > 1:
        k_BSGP, v_BSGP = (heads.repeat_interleave(repeats, dim=2) for heads in (k_BSGP, v_BSGP))
    group = cp.get_group()
    q, k, v = (swap_sharded_dim(heads, split_dim=2, gather_dim=1, group=group) for heads in (q_BSHP, k_BSGP, v_BSGP))
    y = attend(q, k, v, scale, window, document_BS)
    return swap_sharded_dim(y, split_dim=1, gather_dim=2, group=group)
