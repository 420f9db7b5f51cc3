"""Rows sorted by expert, and the tiles that products of sorted rows are made of.

A counting sort without atomics, whose every size is known beforehand: the host waits for nothing, and two runs give the
same bits. M rows, E experts, P programs with a block of rows each, N tiles.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.backend import runs_triton
from kernels.language import INTERPRETING, tl, triton
from kernels.operator import operator

ROWS = 256
"""Rows of a program, each of which is compared with all before it in the block."""

COMPARED = 128 if INTERPRETING else 32
"""Rows compared with at once."""

SCANNED = (128, 64 if INTERPRETING else 8)
"""Blocks and experts whose counts are summed at once."""


class Sorted(NamedTuple):
    """A stable order of rows by expert, all int64.

    order_M: which row comes first, second, ... place_M: its inverse, where each row comes. counts_E: rows of each
    expert.
    """

    order_M: Tensor
    place_M: Tensor
    counts_E: Tensor


def sort_by_expert(expert_M: Tensor, num_experts: int, backend: str = "auto") -> Sorted:
    """Sort rows by their expert (int64, from 0 to num_experts - 1), equal ones as they come. Fewer than 2^31 rows."""
    if runs_triton(backend, expert_M):
        return Sorted(*_sort(expert_M.contiguous(), num_experts))
    order_M = expert_M.argsort(stable=True)
    place_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))
    return Sorted(order_M, place_M, count_rows(expert_M, num_experts))


def count_rows(expert_M: Tensor, num_experts: int) -> Tensor:
    """int64 [..., E]: rows of each expert, along the last dimension; `torch.bincount` makes a GPU's host wait."""
    counts_E = expert_M.new_zeros(*expert_M.shape[:-1], num_experts)
    return counts_E.scatter_add_(-1, expert_M, torch.ones_like(expert_M))


def _fake_sort(expert_M: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(expert_M), torch.empty_like(expert_M), expert_M.new_empty(num_experts)


@operator("sort_by_expert", _fake_sort)
def _sort(expert_M: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order_M, place_M, counts_E = _fake_sort(expert_M, num_experts)
    num_rows = len(expert_M)
    num_programs = triton.cdiv(num_rows, ROWS)
    before_PE = expert_M.new_empty(num_programs, num_experts, dtype=torch.int32)
    start_E = expert_M.new_empty(num_experts, dtype=torch.int32)
    block = max(32, triton.next_power_of_2(num_experts))
    count_experts[(num_programs,)](expert_M, before_PE, num_rows, num_experts, ROWS, block)
    add_up_blocks[(triton.cdiv(num_experts, SCANNED[1]),)](before_PE, counts_E, num_programs, num_experts, *SCANNED)
    add_up_experts[(1,)](counts_E, start_E, num_experts, block)
    place_rows[(num_programs,)](
        expert_M, before_PE, start_E, order_M, place_M, num_rows, num_experts, ROWS, COMPARED, num_warps=8
    )
    return order_M, place_M, counts_E


def most_tiles(num_rows: int, num_experts: int, tile_rows: int) -> int:
    """Tiles that rows can need, however they fall to experts."""
    return -(-num_rows // tile_rows) + num_experts


def expert_tiles(counts_E: Tensor, num_rows: int, tile_rows: int) -> tuple[Tensor, Tensor]:
    """Cut sorted rows into tiles of up to tile_rows rows of one expert, in order.

    Returns start_E1, the first row of each expert and the number of rows, and tile_3N: each tile's expert, its first
    row and the row after its expert's last; both int32. N is the most that any counts_E (int64) with this sum can need,
    so that the host knows it; the experts of spare tiles are -1.
    """
    num_experts = len(counts_E)
    num_tiles = most_tiles(num_rows, num_experts, tile_rows)
    start_E1 = counts_E.new_empty(num_experts + 1, dtype=torch.int32)
    tile_3N = counts_E.new_empty(3, num_tiles, dtype=torch.int32)
    block = max(64, triton.next_power_of_2(num_experts))
    tiles = max(4, 1024 // block)
    cut_tiles[(triton.cdiv(num_tiles, tiles),)](
        counts_E, start_E1, tile_3N, num_experts, num_tiles, tile_rows, block, tiles, num_warps=min(16, block // 64)
    )
    return start_E1, tile_3N


@triton.jit(do_not_specialize=["num_rows"])
def count_experts(expert_M, count_PE, num_rows, num_experts, ROWS: tl.constexpr, BLOCK_E: tl.constexpr):
    """A program counts the experts of its block of rows."""
    program = tl.program_id(0)
    row = program * ROWS + tl.arange(0, ROWS)
    expert = tl.load(expert_M + row, mask=row < num_rows, other=0).to(tl.int32)
    count = tl.histogram(expert, BLOCK_E, mask=row < num_rows)
    column = tl.arange(0, BLOCK_E)
    tl.store(count_PE + program.to(tl.int64) * num_experts + column, count, mask=column < num_experts)


@triton.jit(do_not_specialize=["num_programs"])
def add_up_blocks(
    count_PE, total_E, num_programs, num_experts, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr
):
    """A program sums a few experts' counts: in place over the blocks before each, and over all."""
    expert = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    total = tl.zeros((BLOCK_E,), tl.int32)
    for first in range(0, num_programs, BLOCK_P):
        block = first + tl.arange(0, BLOCK_P)
        mask = (block < num_programs)[:, None] & (expert < num_experts)[None, :]
        pointer = count_PE + block[:, None].to(tl.int64) * num_experts + expert[None, :]
        count = tl.load(pointer, mask=mask, other=0)
        tl.store(pointer, total[None, :] + tl.cumsum(count, 0) - count, mask=mask)
        total += tl.sum(count, 0)
    tl.store(total_E + expert, total.to(tl.int64), mask=expert < num_experts)


@triton.jit
def add_up_experts(count_E, start_E, num_experts, BLOCK_E: tl.constexpr):
    """The rows of all experts before each."""
    expert = tl.arange(0, BLOCK_E)
    count = tl.load(count_E + expert, mask=expert < num_experts, other=0).to(tl.int32)
    tl.store(start_E + expert, tl.cumsum(count, 0) - count, mask=expert < num_experts)


@triton.jit(do_not_specialize=["num_rows"])
def place_rows(
    expert_M, before_PE, start_E, order_M, place_M, num_rows, num_experts, ROWS: tl.constexpr, COMPARED: tl.constexpr
):
    """A row comes after all of earlier experts, those of its own in earlier blocks, and those before it in its block.

    The last are counted by comparison, COMPARED rows at a time.
    """
    program = tl.program_id(0)
    here = tl.arange(0, ROWS)
    row = program * ROWS + here
    expert = tl.load(expert_M + row, mask=row < num_rows, other=0).to(tl.int32)
    place = tl.load(start_E + expert, mask=row < num_rows, other=0)
    place += tl.load(before_PE + program.to(tl.int64) * num_experts + expert, mask=row < num_rows, other=0)
    for first in range(0, ROWS, COMPARED):
        other = first + tl.arange(0, COMPARED)
        row_other = program * ROWS + other
        expert_other = tl.load(expert_M + row_other, mask=row_other < num_rows, other=-1).to(tl.int32)
        is_before = (expert_other[:, None] == expert[None, :]) & (other[:, None] < here[None, :])
        place += tl.sum(is_before.to(tl.int32), 0)
    tl.store(order_M + place, row.to(tl.int64), mask=row < num_rows)
    tl.store(place_M + row, place.to(tl.int64), mask=row < num_rows)


@triton.jit(do_not_specialize=["num_tiles"])
def cut_tiles(
    counts_E, start_E1, tile_3N, num_experts, num_tiles,
    TILE_ROWS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """A program fills in a few tiles, each of the first expert whose tiles, and those before it, reach beyond it."""
    expert = tl.arange(0, BLOCK_E)
    count = tl.load(counts_E + expert, mask=expert < num_experts, other=0).to(tl.int32)
    end = tl.cumsum(count, 0)
    tiles = (count + TILE_ROWS - 1) // TILE_ROWS
    tiles_end = tl.cumsum(tiles, 0)
    num_stored = tl.where(tl.program_id(0) == 0, num_experts, 0)
    tl.store(start_E1 + expert, end - count, mask=expert < num_stored)
    tl.store(start_E1 + 1 + expert, end, mask=expert == num_stored - 1)

    tile = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    owner = tl.sum((tiles_end[None, :] <= tile[:, None]).to(tl.int32), 1)
    is_owner = expert[None, :] == owner[:, None]
    shift = end - count - (tiles_end - tiles) * TILE_ROWS
    first = tl.sum(tl.where(is_owner, shift[None, :], 0), 1) + tile * TILE_ROWS
    last = tl.sum(tl.where(is_owner, end[None, :], 0), 1)
    mask = tile < num_tiles
    tl.store(tile_3N + tile, tl.where(owner < num_experts, owner, -1), mask=mask)
    tl.store(tile_3N + num_tiles + tile, first, mask=mask)
    tl.store(tile_3N + 2 * num_tiles + tile, last, mask=mask)
