"""The dispatch of tokens to experts on other ranks over memory that ranks share: each writes into and reads from its
peers' own, addressed through a table.

It goes in turns, numbered from 1 for each memory and the same on all ranks. In a turn a rank first writes, then tells
all others, then waits for them, then reads; functions come in such pairs:

    announce -> place       how many rows each has for each expert; where this rank's rows go
    send     -> receive     tokens to the ranks of their experts
    offer    -> collect     what became of them, summed for each token

The backward of send and receive is offer and collect, and the other way round. Turns use two halves of the memory, one
after the other: whoever writes in a half has seen all ranks come to the turn after that in which it was last read.

Nothing waits on the host. What it does not know, how many rows come from others, stays in tensors, and memory is as
large as the most that can come.

T tokens of this rank, D model width, E experts, L experts of one rank, R ranks, M rows of this rank (sorted by expert),
N rows for which this rank has room, V places for tokens of which these are.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.language import INTERPRETING, triton
from kernels.moe import symmetric_kernels as kernels
from kernels.moe.peers import Layout, Peers
from kernels.moe.rows import TokenRows, rows_of_tokens
from kernels.operator import operator

WARPS = 2
COLUMNS = 64 if INTERPRETING else WARPS * 32 * 8
"""Columns of a program that moves rows: 16 bytes a thread in bfloat16."""

ROWS = 32 if INTERPRETING else 4
"""Rows of such a program."""

NUMBERS = 256
"""Rows of a program that moves a number for each, or of a block of one expert's."""

MOST_SUMMED = 8
"""Rows of a token that are read at once."""

PROGRAMS = 2 if INTERPRETING else 1024
"""That share the rows which came."""

PATIENCE = 2**31 - 1
"""Looks at the other ranks' signals after which one of them is taken for dead: on a GPU about half an hour."""


class Places(NamedTuple):
    """Where this rank's rows go, and what comes here.

    token_M: int64, the token of each row. owner_M, place_M: int32, its rank, and its place among the rows there.
    counts_L: int64, rows that come for each expert of this rank. visited_TR: int32, 1 where a token visits a rank, if
    deduplicated; else start_T1 and row_M, the rows of each token (`TokenRows`).
    """

    token_M: Tensor
    owner_M: Tensor
    place_M: Tensor
    counts_L: Tensor
    visited_TR: Tensor | None = None
    start_T1: Tensor | None = None
    row_M: Tensor | None = None


def announce(peers: Peers, turn: int, counts_E: Tensor) -> None:
    """Tell all ranks how many rows (int64) this one has for each expert."""
    _announce(*peers.own(turn), counts_E.contiguous())


def place(
    peers: Peers, turn: int, counts_E: Tensor, token_M: Tensor, num_tokens: int, rows: TokenRows | None = None
) -> Places:
    """Wait for all counts, and find out where this rank's rows go: token_M (int64) of them, sorted by expert.

    rows: those of each token, made of token_M where they are needed and not given.
    """
    counts_E, token_M = counts_E.contiguous(), token_M.contiguous()
    owner_M, place_M, counts_L, visited_TR = _place(*peers.own(turn), counts_E, token_M, num_tokens)
    if peers.layout.deduplicated:
        return Places(token_M, owner_M, place_M, counts_L, visited_TR)
    return Places(token_M, owner_M, place_M, counts_L, None, *(rows or rows_of_tokens(token_M, num_tokens)))


def send(peers: Peers, turn: int, x_TD: Tensor, places: Places, gate_M: Tensor | None = None) -> None:
    """Write tokens (float32 or bfloat16) to the ranks of their experts; with gates, what these need of each row."""
    where = places.token_M, places.owner_M, places.place_M, places.visited_TR
    _send(*peers.own(turn), x_TD.contiguous(), None if gate_M is None else gate_M.contiguous(), *where)


def receive(
    peers: Peers, turn: int, counts_L: Tensor, arrived_V: Tensor | None, num_places: int, dtype: torch.dtype
) -> Tensor:
    """Wait for all tokens, and return the first num_places places: x_VD. Those that nothing came to hold anything.

    arrived_V: what `received_rows` told of an earlier turn in which the same tokens came; None if they came with gates.
    """
    return _receive(*peers.own(turn), counts_L, arrived_V, num_places, dtype)


def received_rows(peers: Peers, turn: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """What came with the tokens of a turn in which `receive` has waited, in the order of this rank's experts.

    token_N: int64, the place of each row's token. gate_N: float32. They are as long as the layout allows; past the
    rows that counts_L counts they mean nothing. arrived_V: int32, 1 where a token came; None unless deduplicated, when
    the first places are full, one for each row.
    """
    memory, layout = peers.memory, peers.layout
    gate_N = layout.view(memory, "gates", turn, torch.float32).clone()
    if not layout.deduplicated:
        return torch.arange(layout.num_rows, device=memory.device), gate_N, None
    token_N = layout.view(memory, "copies", turn, torch.int32).long()
    return token_N, gate_N, layout.view(memory, "arrived", turn, torch.int32).clone()


def rows_of_places(token_N: Tensor, counts_L: Tensor, num_places: int, deduplicated: bool) -> TokenRows:
    """The rows of each place, of those that counts_L counts; token_N as `received_rows` gives it."""
    row_N, num_rows = torch.arange(len(token_N), device=token_N.device), counts_L.sum()
    if not deduplicated:
        return TokenRows(torch.arange(num_places + 1, device=token_N.device).minimum(num_rows), row_N)
    # What comes after the rows is sorted behind all places.
    place_N = torch.where(row_N < num_rows, token_N, num_places).to(torch.int32)
    sorted_N, row_N = place_N.sort(stable=True)
    place_V1 = torch.arange(num_places + 1, dtype=torch.int32, device=token_N.device)
    return TokenRows(torch.searchsorted(sorted_N, place_V1), row_N)


def offer(
    peers: Peers, turn: int, y_VD: Tensor, counts_L: Tensor, arrived_V: Tensor | None, number_N: Tensor | None = None
) -> None:
    """Show all ranks what became of their tokens, in the places where `receive` gave them.

    number_N: float32, one for each row beside that (the gradient of its gate).
    """
    _offer(*peers.own(turn), y_VD.contiguous(), number_N, counts_L, arrived_V)


def collect(
    peers: Peers, turn: int, places: Places, num_tokens: int, width: int, dtype: torch.dtype, with_numbers: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Wait for all, and add up for each token what the ranks that it visited show: y_TD, summed in float32.

    with_numbers: also the number of each of this rank's rows, float32 [M].
    """
    _, owner_M, place_M, _, *of_tokens = places
    y_TD, number_M = _collect(*peers.own(turn), owner_M, place_M, *of_tokens, num_tokens, width, dtype, with_numbers)
    return y_TD, number_M if with_numbers else None


def _signal(pointers_R: Tensor, rank: int, turn: int) -> None:
    num_ranks = len(pointers_R)
    kernels.arrive[(1,)](pointers_R, rank, turn, num_ranks, triton.next_power_of_2(num_ranks), num_warps=1)


def _wait(pointers_R: Tensor, rank: int, turn: int) -> None:
    num_ranks = len(pointers_R)
    # Of all kernels here this one alone asserts: debug makes it do so.
    kernels.wait[(1,)](
        pointers_R, rank, turn, num_ranks, triton.next_power_of_2(num_ranks), PATIENCE, num_warps=1, debug=True
    )


def _fake_nothing(*arguments: object) -> None:
    """What writes into memory returns nothing."""


@operator("symmetric_announce", _fake_nothing, mutates=("memory",))
def _announce(
    memory: Tensor, pointers_R: Tensor, rank: int, turn: int, layout: list[int], counts_E: Tensor
) -> None:
    where, num_experts = Layout(*layout), len(counts_E)
    kernels.put_counts[(where.num_ranks,)](
        counts_E, pointers_R, where.offset("counts", turn), rank, num_experts, triton.next_power_of_2(num_experts)
    )
    _signal(pointers_R, rank, turn)


def _fake_place(
    memory: Tensor, pointers_R: Tensor, rank: int, turn: int, layout: list[int], counts_E: Tensor, token_M: Tensor,
    num_tokens: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    where = Layout(*layout)
    owner_M, place_M = (token_M.new_empty(len(token_M), dtype=torch.int32) for _ in range(2))
    counts_L = counts_E.new_empty(where.num_experts // where.num_ranks)
    visited_TR = token_M.new_zeros(num_tokens * where.deduplicated, where.num_ranks, dtype=torch.int32)
    return owner_M, place_M, counts_L, visited_TR


@operator("symmetric_place", _fake_place)
def _place(
    memory: Tensor, pointers_R: Tensor, rank: int, turn: int, layout: list[int], counts_E: Tensor, token_M: Tensor,
    num_tokens: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    where = Layout(*layout)
    owner_M, place_M, counts_L, visited_TR = _fake_place(
        memory, pointers_R, rank, turn, layout, counts_E, token_M, num_tokens
    )
    _wait(pointers_R, rank, turn)
    kernels.place_rows[(where.num_experts,)](
        counts_E, token_M, pointers_R, where.offset("counts", turn), owner_M, place_M,
        visited_TR if where.deduplicated else None, counts_L, rank,
        where.num_experts, len(counts_L), where.num_ranks, triton.next_power_of_2(where.num_experts),
        triton.next_power_of_2(where.num_ranks), NUMBERS,
    )
    return owner_M, place_M, counts_L, visited_TR


@operator("symmetric_send", _fake_nothing, mutates=("memory",))
def _send(
    memory: Tensor, pointers_R: Tensor, rank: int, turn: int, layout: list[int], x_TD: Tensor, gate_M: Tensor | None,
    token_M: Tensor, owner_M: Tensor, place_M: Tensor, visited_TR: Tensor | None,
) -> None:
    where, num_rows, (num_tokens, width) = Layout(*layout), len(token_M), x_TD.shape
    offset = {name: where.offset(name, turn) for name in ("tokens", "gates", "copies", "arrived")}
    blocks = triton.cdiv(width, COLUMNS)
    if where.deduplicated:
        kernels.push_copies[triton.cdiv(where.num_tokens, ROWS), blocks](
            x_TD, visited_TR, pointers_R, offset["tokens"], None if gate_M is None else offset["arrived"], rank,
            num_tokens, where.num_tokens, width, where.num_ranks, ROWS, COLUMNS, num_warps=WARPS,
        )
    else:
        kernels.push_rows[triton.cdiv(num_rows, ROWS), blocks](
            x_TD, token_M, owner_M, place_M, pointers_R, offset["tokens"], num_rows, width, ROWS, COLUMNS,
            num_warps=WARPS,
        )
    if gate_M is not None:
        kernels.push_gates[(triton.cdiv(num_rows, NUMBERS),)](
            gate_M, token_M, owner_M, place_M, pointers_R, offset["gates"],
            offset["copies"] if where.deduplicated else None, rank * where.num_tokens, num_rows, NUMBERS,
        )
    _signal(pointers_R, rank, turn)


def _fake_receive(
    memory: Tensor, pointers_R: Tensor, rank: int, turn: int, layout: list[int], counts_L: Tensor,
    arrived_V: Tensor | None, num_places: int, dtype: torch.dtype,
) -> Tensor:
    return memory.new_empty(num_places, Layout(*layout).row_bytes // dtype.itemsize, dtype=dtype)


@operator("symmetric_receive", _fake_receive)
def _receive(
    memory: Tensor, pointers_R: Tensor, rank: int, turn: int, layout: list[int], counts_L: Tensor,
    arrived_V: Tensor | None, num_places: int, dtype: torch.dtype,
) -> Tensor:
    x_VD = _fake_receive(memory, pointers_R, rank, turn, layout, counts_L, arrived_V, num_places, dtype)
    where = Layout(*layout)
    _wait(pointers_R, rank, turn)
    if where.deduplicated and arrived_V is None:
        arrived_V = where.view(memory, "arrived", turn, torch.int32)
    _copy_arrived(where.view(memory, "tokens", turn, dtype), x_VD, counts_L, arrived_V, x_VD.shape)
    return x_VD


@operator("symmetric_offer", _fake_nothing, mutates=("memory",))
def _offer(
    memory: Tensor, pointers_R: Tensor, rank: int, turn: int, layout: list[int], y_VD: Tensor, number_N: Tensor | None,
    counts_L: Tensor, arrived_V: Tensor | None,
) -> None:
    where = Layout(*layout)
    _copy_arrived(y_VD, where.view(memory, "tokens", turn, y_VD.dtype), counts_L, arrived_V, y_VD.shape)
    if number_N is not None:
        where.view(memory, "gates", turn, torch.float32)[: len(number_N)].copy_(number_N)
    _signal(pointers_R, rank, turn)


def _copy_arrived(
    source: Tensor, target: Tensor, counts_L: Tensor, arrived_V: Tensor | None, shape: tuple[int, int]
) -> None:
    num_places, width = shape
    grid = min(PROGRAMS, triton.cdiv(num_places, ROWS)), triton.cdiv(width, COLUMNS)
    kernels.copy_arrived[grid](
        source, target, counts_L, arrived_V, num_places, width, len(counts_L),
        triton.next_power_of_2(len(counts_L)), ROWS, COLUMNS, num_warps=WARPS,
    )


def _fake_collect(
    memory: Tensor, pointers_R: Tensor, rank: int, turn: int, layout: list[int], owner_M: Tensor, place_M: Tensor,
    visited_TR: Tensor | None, start_T1: Tensor | None, row_M: Tensor | None, num_tokens: int, width: int,
    dtype: torch.dtype, with_numbers: bool,
) -> tuple[Tensor, Tensor]:
    y_TD = memory.new_empty(num_tokens, width, dtype=dtype)
    return y_TD, memory.new_empty(len(owner_M) * with_numbers, dtype=torch.float32)


@operator("symmetric_collect", _fake_collect)
def _collect(
    memory: Tensor, pointers_R: Tensor, rank: int, turn: int, layout: list[int], owner_M: Tensor, place_M: Tensor,
    visited_TR: Tensor | None, start_T1: Tensor | None, row_M: Tensor | None, num_tokens: int, width: int,
    dtype: torch.dtype, with_numbers: bool,
) -> tuple[Tensor, Tensor]:
    y_TD, number_M = _fake_collect(
        memory, pointers_R, rank, turn, layout, owner_M, place_M, visited_TR, start_T1, row_M, num_tokens, width, dtype,
        with_numbers,
    )
    where, num_rows, blocks = Layout(*layout), len(owner_M), triton.cdiv(width, COLUMNS)
    _wait(pointers_R, rank, turn)
    if where.deduplicated:
        kernels.pull_copies[triton.cdiv(num_tokens, ROWS), blocks](
            visited_TR, pointers_R, where.offset("tokens", turn), y_TD, rank, num_tokens, where.num_tokens, width,
            where.num_ranks, ROWS, COLUMNS, num_warps=WARPS,
        )
    else:
        summed = min(MOST_SUMMED, triton.next_power_of_2(triton.cdiv(num_rows, max(1, num_tokens)) or 1))
        kernels.pull_rows[num_tokens, blocks](
            start_T1, row_M, owner_M, place_M, pointers_R, where.offset("tokens", turn), y_TD, width, summed, COLUMNS,
            num_warps=WARPS,
        )
    if with_numbers:
        kernels.pull_numbers[(triton.cdiv(num_rows, NUMBERS),)](
            owner_M, place_M, pointers_R, where.offset("gates", turn), number_M, num_rows, NUMBERS
        )
    return y_TD, number_M
