"""Attention to a sequence in parts, keys travelling round the ranks, equals attention to all of it on one device.

B batch, S sequence, H query heads, G key and value heads, P head width.
"""

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from framework.model.attention import attend
from parallel import Mesh, MeshSizes
from parallel.context import own_part, ring, ring_attend, visibility
from parallel.context.visibility import Visibility

SCALE = 0.4


def leaves(batch: int, seq_len: int, heads: int, kv_heads: int, width: int, dtype=torch.float64) -> list[Tensor]:
    """Queries, keys, values and the output's gradient."""
    generator = torch.Generator().manual_seed(0)
    counts = (heads, kv_heads, kv_heads, heads)
    return [torch.randn(batch, seq_len, n, width, generator=generator, dtype=torch.float64).to(dtype) for n in counts]


def documents(batch: int, seq_len: int, starts: list[list[int]]) -> Tensor:
    """int64 [B, S]: row b counts the starts up to each token."""
    document_BS = torch.zeros(batch, seq_len, dtype=torch.int64)
    for row, places in zip(document_BS, starts, strict=True):
        row[places] = 1
    return document_BS.cumsum(1)


def on_ranks(tensors: list[Tensor], window: int | None, document_BS: Tensor | None, tile: tuple[int, int] = (3, 2)):
    """The output and the gradients of this rank's part; several tiles a part, however small it is."""
    visibility.QUERIES_OF_A_TILE, visibility.KEYS_OF_A_TILE = tile
    cp = Mesh(MeshSizes(cp=dist.get_world_size()), "cpu").cp
    *inputs, dy_BSHP = (own_part(x, cp).clone() for x in tensors)
    q, k, v = (x.requires_grad_() for x in inputs)
    y = ring_attend(q, k, v, SCALE, window, document_BS, cp=cp)
    return y.detach(), *torch.autograd.grad(y, (q, k, v), dy_BSHP)


def on_one_device(tensors: list[Tensor], window: int | None, document_BS: Tensor | None) -> tuple[Tensor, ...]:
    *inputs, dy_BSHP = tensors
    q, k, v = (x.clone().requires_grad_() for x in inputs)
    y = attend(q, k, v, SCALE, window, document_BS)
    return y.detach(), *torch.autograd.grad(y, (q, k, v), dy_BSHP)


def check(ranks, num_ranks: int, tensors: list[Tensor], window=None, document_BS=None, tolerance=1e-12, tile=(3, 2)):
    got = ranks.run(num_ranks, on_ranks, tensors, window, document_BS, tile)
    wide = [x.double() for x in tensors]
    for name, parts, expected in zip("y q k v".split(), zip(*got, strict=True),
                                     on_one_device(wide, window, document_BS), strict=True):
        whole = torch.cat(parts, 1)
        assert whole.dtype == tensors[0].dtype
        difference, scale = (whole.double() - expected).abs().max(), expected.abs().max()
        assert difference <= tolerance * scale + 1e-13, f"{name}: {difference:.2e} of {scale:.2e}"


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("window", [None, 1, 2, 7, 9, 100])
def test_causal_and_windowed(ranks, num_ranks, window):
    check(ranks, num_ranks, leaves(2, 24, 6, 3, 5), window)


@pytest.mark.parametrize("starts", [[[], []], [[6], [12]], [[1, 5, 6, 13, 23], [3, 11, 12]]])
@pytest.mark.parametrize("window", [None, 5])
def test_documents_that_end_at_borders_and_elsewhere(ranks, starts, window):
    check(ranks, 4, leaves(2, 24, 2, 2, 4), window, documents(2, 24, starts))


@pytest.mark.parametrize("tile", [(256, 1024), (1, 1), (2, 5)])
def test_any_tiles(ranks, tile):
    check(ranks, 2, leaves(1, 16, 3, 1, 4), 6, documents(1, 16, [[3, 8, 11]]), tile=tile)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precision(ranks, dtype, tolerance):
    check(ranks, 2, leaves(2, 32, 4, 2, 8, dtype), None, documents(2, 32, [[9], [16, 20]]), tolerance)


def test_large_scores_do_not_overflow(ranks):
    tensors = leaves(1, 16, 2, 1, 4)
    tensors[0] *= 300.0
    check(ranks, 2, tensors, tolerance=1e-10)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_documents_windows_and_heads(ranks, data):
    part, batch = data.draw(st.integers(1, 9), "tokens of a part"), data.draw(st.integers(1, 2), "batch")
    kv_heads, heads_each = data.draw(st.integers(1, 3), "kv heads"), data.draw(st.integers(1, 3), "heads of each")
    window = data.draw(st.none() | st.integers(1, 2 * part + 1), "window")
    places = st.lists(st.integers(1, 2 * part - 1), max_size=4)
    starts = data.draw(st.none() | st.lists(places, min_size=batch, max_size=batch), "documents")
    document_BS = None if starts is None else documents(batch, 2 * part, starts)
    check(ranks, 2, leaves(batch, 2 * part, kv_heads * heads_each, kv_heads, 3), window, document_BS)


def count_hops(window: int | None, seq_len: int) -> int:
    cp, hops = Mesh(MeshSizes(cp=4), "cpu").cp, []
    original = ring.pass_on
    ring.pass_on = lambda x, shift, group: (hops.append(shift % 4), original(x, shift, group))[1]
    try:
        q, k, v, _ = (own_part(x, cp) for x in leaves(1, seq_len, 1, 1, 2))
        ring_attend(q, k, v, SCALE, window, None, cp=cp)
    finally:
        ring.pass_on = original
    return sum(hop > 0 for hop in hops)


@pytest.mark.parametrize("window, hops", [(None, 3), (1, 0), (2, 1), (7, 1), (8, 2), (100, 3)])
def test_keys_travel_as_far_as_the_window_reaches(ranks, window, hops):
    """24 tokens in 4 parts of 6: with a window of 7 the first query of a part sees the part before it, no more."""
    assert ranks.run(4, count_hops, window, 24) == [hops] * 4


@pytest.mark.parametrize("window", [None, 3, 8])
def test_tiles_hold_all_that_is_seen_and_no_block_of_the_future(window):
    queries, keys = range(12, 24), range(6, 30)
    tiles = list(Visibility(window, None).tiles(queries, keys, torch.device("cpu")))
    held = {
        (queries[q], keys[k]) for tile in tiles for q in range(12)[tile.queries] for k in range(24)[tile.keys]
        if tile.mask is None or tile.mask[0, 0, 0, q - tile.queries.start, k - tile.keys.start]
    }
    assert held == {(q, k) for q in queries for k in keys if 0 <= q - k < (window or 100)}
    assert not list(Visibility(window, None).tiles(range(0, 6), range(6, 12), torch.device("cpu")))
