"""Attention to a sequence in parts, heads swapped for tokens, equals attention to all of it on one device.

B batch, S sequence, H query heads, G key and value heads, P head width.
"""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from framework.model.attention import attend
from parallel import Mesh, MeshSizes
from parallel.context import own_part, ulysses_attend
from parallel.pool import RankError

SCALE = 0.4


def leaves(heads: int, kv_heads: int, batch: int = 2, seq_len: int = 12, width: int = 3) -> list[Tensor]:
    """Queries, keys, values and the output's gradient."""
    generator = torch.Generator().manual_seed(0)
    counts = (heads, kv_heads, kv_heads, heads)
    return [torch.randn(batch, seq_len, n, width, generator=generator, dtype=torch.float64) for n in counts]


def gradients(attention, tensors: list[Tensor], *args) -> tuple[Tensor, ...]:
    """The output, and the gradients of queries, keys and values."""
    *inputs, dy_BSHP = tensors
    q, k, v = (x.clone().requires_grad_() for x in inputs)
    y = attention(q, k, v, SCALE, *args)
    return y.detach(), *torch.autograd.grad(y, (q, k, v), dy_BSHP)


def on_ranks(tensors: list[Tensor], window: int | None, document_BS: Tensor | None) -> tuple[Tensor, ...]:
    cp = Mesh(MeshSizes(cp=dist.get_world_size()), "cpu").cp

    def attention(*args):
        return ulysses_attend(*args, attend=attend, cp=cp)

    return gradients(attention, [own_part(x, cp) for x in tensors], window, document_BS)


@pytest.mark.parametrize("num_ranks, heads, kv_heads", [
    (2, 2, 2), (2, 4, 2), (2, 6, 3), (2, 2, 1), (4, 4, 4), (4, 8, 2), (4, 4, 1), (4, 12, 6), (3, 6, 2),
])
@pytest.mark.parametrize("window, starts", [(None, None), (5, None), (None, [4, 6, 9]), (3, [7])])
def test_equals_one_device(ranks, num_ranks, heads, kv_heads, window, starts):
    """Of 6 key heads on 4 ranks and 3 on 2, each is repeated: the order of the groups must survive."""
    document_BS = None
    if starts is not None:
        document_BS = torch.zeros(2, 12, dtype=torch.int64)
        document_BS[0, starts] = 1
        document_BS = document_BS.cumsum(1)
    tensors = leaves(heads, kv_heads)
    got = ranks.run(num_ranks, on_ranks, tensors, window, document_BS)
    expected = gradients(attend, tensors, window, document_BS)
    for parts, reference in zip(zip(*got, strict=True), expected, strict=True):
        torch.testing.assert_close(torch.cat(parts, 1), reference, rtol=1e-12, atol=1e-13)


def test_heads_that_do_not_divide_are_refused(ranks):
    with pytest.raises(RankError, match="cp=2 must divide the 3 query heads of a rank"):
        ranks.run(2, on_ranks, leaves(3, 1), None, None)
