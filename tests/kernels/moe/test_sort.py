"""Sorting rows by expert, and the tiles of sorted rows, in Triton and in PyTorch.

M rows, E experts.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.moe.sort import count_rows, expert_tiles, sort_by_expert
from tests.helpers.kernels import poisoned


def check(expert_M, num_experts, backend):
    with poisoned():
        first, again = (sort_by_expert(expert_M, num_experts, backend) for _ in range(2))
    order_M = expert_M.argsort(stable=True)
    expected = order_M, order_M.argsort(), torch.bincount(expert_M, minlength=num_experts)
    for got, twice, tensor in zip(first, again, expected, strict=True):
        assert got.dtype == torch.int64 and torch.equal(got, tensor) and torch.equal(got, twice)


def random_experts(num_rows, num_experts, seed=0):
    return torch.randint(num_experts, (num_rows,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("num_rows, num_experts", [(0, 3), (1, 1), (1, 7), (256, 5), (700, 70)])
def test_is_a_stable_order(num_rows, num_experts, backend):
    check(random_experts(num_rows, num_experts), num_experts, backend)


def test_all_rows_to_the_last_expert():
    check(torch.full((600,), 39), 40, "triton")


def test_more_blocks_than_are_summed_at_once(monkeypatch):
    monkeypatch.setattr("kernels.moe.sort.ROWS", 4)
    monkeypatch.setattr("kernels.moe.sort.COMPARED", 2)
    monkeypatch.setattr("kernels.moe.sort.SCANNED", (8, 4))
    check(random_experts(75, 6), 6, "triton")


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=300))
def test_any_routing(experts):
    check(torch.tensor(experts, dtype=torch.int64), 13, "triton")


@pytest.mark.parametrize("counts", [[0, 0, 0], [1], [0, 16, 17, 0, 1, 40, 0], [0] * 69 + [50, 0, 3]])
def test_tiles_cover_each_experts_rows(counts):
    counts_E, num_rows = torch.tensor(counts), sum(counts)
    start_E1, tile_3N = expert_tiles(counts_E, num_rows, 16)
    starts = [sum(counts[:expert]) for expert in range(len(counts) + 1)]
    assert start_E1.tolist() == starts
    expected = [(expert, first, starts[expert] + count) for expert, count in enumerate(counts)
                for first in range(starts[expert], starts[expert] + count, 16)]
    tiles = tile_3N.T.tolist()
    assert len(tiles) == -(-num_rows // 16) + len(counts)
    assert [tuple(tile) for tile in tiles[: len(expected)]] == expected
    assert all(tile[0] == -1 for tile in tiles[len(expected):])


def test_counts_of_several_sequences():
    expert_BM = random_experts(60, 7).view(3, 20)
    expected = torch.stack([torch.bincount(expert_M, minlength=7) for expert_M in expert_BM])
    assert torch.equal(count_rows(expert_BM, 7), expected)
