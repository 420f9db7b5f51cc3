"""Triton's part of the dispatch over peers' memory: what crosses, and the signals that tell of it.

Addresses come out of a table: where each rank's memory begins, as this rank sees it. What is written for peers is
written straight into their memory, and what they made is read straight out of it.

T tokens of this rank, D model width, E experts, L experts of one rank, R ranks, M rows of this rank (sorted by expert),
V rows of tokens that this rank has room for.
"""

from kernels.language import narrow, tl, triton, widen


@triton.jit
def region(pointers_R, rank, offset, dtype: tl.constexpr):
    """Where a region of a rank's memory begins.

    That it is aligned the compiler cannot see of a number out of a table. Said of the pointer, loads and stores are 16
    bytes wide; said of the number, or not at all, they are those of single elements.
    """
    return tl.multiple_of((tl.load(pointers_R + rank) + offset).to(tl.pointer_type(dtype)), 16)


@triton.jit
def regions(pointers_R, rank, offset, mask, dtype: tl.constexpr):
    """The same for a block of ranks."""
    address = tl.load(pointers_R + rank, mask=mask, other=0) + offset
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), [16])


@triton.jit(do_not_specialize=["rank", "turn"])
def arrive(pointers_R, rank, turn, R: tl.constexpr, BLOCK_R: tl.constexpr):
    """Tell every rank that what this one wrote in its turn is there. Writes of launches before this one are."""
    peer = tl.arange(0, BLOCK_R)
    theirs = regions(pointers_R, peer, 0, peer < R, tl.int32) + rank
    tl.atomic_xchg(theirs, tl.zeros((BLOCK_R,), tl.int32) + turn, mask=peer < R, sem="release", scope="sys")


@triton.jit(do_not_specialize=["rank", "turn"])
def wait(pointers_R, rank, turn, R: tl.constexpr, BLOCK_R: tl.constexpr, PATIENCE: tl.constexpr):
    """Until every rank has come as far as this turn. Launches after this one see what they wrote.

    It goes on only when all are there. For one that never comes it waits until it is ended from outside, by the run's
    watchdog; at the latest, on a GPU, the assertion does so after PATIENCE looks.
    """
    peer = tl.arange(0, BLOCK_R)
    mine = region(pointers_R, rank, 0, tl.int32) + peer
    nothing = tl.zeros((BLOCK_R,), tl.int32)
    looks = 0
    behind = R
    while behind > 0:
        seen = tl.atomic_add(mine, nothing, mask=peer < R, sem="acquire", scope="sys")
        behind = tl.sum(((seen < turn) & (peer < R)).to(tl.int32), 0)
        looks += 1
        tl.device_assert(looks < PATIENCE, "a rank of the dispatch does not come")


@triton.jit(do_not_specialize=["rank"])
def put_counts(counts_E, pointers_R, offset, rank, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """A program writes how many rows this rank has for each expert into one rank's table, [R, E]."""
    expert = tl.arange(0, BLOCK_E)
    count = tl.load(counts_E + expert, mask=expert < E, other=0).to(tl.int32)
    table = region(pointers_R, tl.program_id(0), offset, tl.int32)
    tl.store(table + rank * E + expert, count, mask=expert < E)


@triton.jit(do_not_specialize=["rank"])
def place_rows(
    counts_E, token_M, pointers_R, offset, owner_M, place_M, visited_TR, counts_L, rank,
    E: tl.constexpr, L: tl.constexpr, R: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr,
):
    """A program finds out where the rows for one expert go: to its rank, after all rows for that rank's experts before
    it, and those that ranks before this one have for it.

    visited_TR, where it is given, learns which ranks tokens visit; counts_L, how many rows come here for each expert.
    """
    expert = tl.program_id(0)
    owner = expert // L
    lane = tl.arange(0, BLOCK_E)
    count = tl.load(counts_E + lane, mask=lane < E, other=0).to(tl.int32)
    start = tl.sum(tl.where(lane < expert, count, 0), 0)
    end = start + tl.sum(tl.where(lane == expert, count, 0), 0)

    table, source = region(pointers_R, rank, offset, tl.int32), tl.arange(0, BLOCK_R)
    theirs = tl.load(table + source * E + expert, mask=source < R, other=0)
    is_earlier = (lane >= owner * L) & (lane < expert)
    earlier = tl.zeros((BLOCK_E,), tl.int32)
    for each in range(R):
        earlier += tl.load(table + each * E + lane, mask=is_earlier, other=0)
    first = tl.sum(earlier, 0) + tl.sum(tl.where(source < rank, theirs, 0), 0)
    if owner == rank:
        tl.store(counts_L + expert - rank * L, tl.sum(theirs, 0).to(tl.int64))

    for block in range(start, end, BLOCK_M):
        row = block + tl.arange(0, BLOCK_M)
        tl.store(owner_M + row, tl.zeros((BLOCK_M,), tl.int32) + owner, mask=row < end)
        tl.store(place_M + row, first + row - start, mask=row < end)
        if visited_TR is not None:
            token = tl.load(token_M + row, mask=row < end, other=0)
            tl.store(visited_TR + token * R + owner, tl.full((BLOCK_M,), 1, tl.int32), mask=row < end)


@triton.jit(do_not_specialize=["num_rows"])
def push_rows(
    x_TD, token_M, owner_M, place_M, pointers_R, offset, num_rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A program writes the tokens of ROWS rows, COLUMNS columns of each, to their places on their ranks."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < num_rows)[:, None] & (column < width)[None, :]
    token = tl.load(token_M + row, mask=row < num_rows, other=0)
    owner = tl.load(owner_M + row, mask=row < num_rows, other=0)
    place = tl.load(place_M + row, mask=row < num_rows, other=0).to(tl.int64)
    x = tl.load(x_TD + token[:, None] * width + column[None, :], mask=mask, other=0.0)
    theirs = regions(pointers_R, owner, offset, row < num_rows, x_TD.dtype.element_ty)
    tl.store(theirs[:, None] + place[:, None] * width + column[None, :], x, mask=mask)


@triton.jit(do_not_specialize=["rank", "num_tokens", "most_tokens"])
def push_copies(
    x_TD, visited_TR, pointers_R, offset, arrived_offset, rank, num_tokens, most_tokens, width,
    R: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """A program writes ROWS tokens, COLUMNS columns of each, to every rank that they visit.

    A token has a place of its own there, after those of the ranks before this one, most_tokens each. arrived_offset,
    where it is given: of flags that tell each rank for all those places whether a token came.
    """
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_token, is_column = token < num_tokens, column < width
    place = rank * most_tokens + token.to(tl.int64)
    mask = is_token[:, None] & is_column[None, :]
    x = tl.load(x_TD + token[:, None].to(tl.int64) * width + column[None, :], mask=mask, other=0.0)
    for peer in range(R):
        visits = tl.load(visited_TR + token.to(tl.int64) * R + peer, mask=is_token, other=0)
        theirs = region(pointers_R, peer, offset, x_TD.dtype.element_ty)
        tl.store(theirs + place[:, None] * width + column[None, :], x, mask=(visits != 0)[:, None] & is_column[None, :])
        if arrived_offset is not None:
            arrived = region(pointers_R, peer, arrived_offset, tl.int32)
            tl.store(arrived + place, visits, mask=token < tl.where(tl.program_id(1) == 0, most_tokens, 0))


@triton.jit(do_not_specialize=["first_copy", "num_rows"])
def push_gates(
    gate_M, token_M, owner_M, place_M, pointers_R, gate_offset, copy_offset, first_copy, num_rows, ROWS: tl.constexpr
):
    """A program writes the gates of ROWS rows to their places and, where copy_offset is given, where their token is."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = row < num_rows
    owner = tl.load(owner_M + row, mask=mask, other=0)
    place = tl.load(place_M + row, mask=mask, other=0)
    gate = widen(tl.load(gate_M + row, mask=mask, other=0.0))
    tl.store(regions(pointers_R, owner, gate_offset, mask, tl.float32) + place, gate, mask=mask)
    if copy_offset is not None:
        copy = first_copy + tl.load(token_M + row, mask=mask, other=0).to(tl.int32)
        tl.store(regions(pointers_R, owner, copy_offset, mask, tl.int32) + place, copy, mask=mask)


@triton.jit(do_not_specialize=["num_places"])
def copy_arrived(
    from_VD, to_VD, counts_L, arrived_V, num_places, width,
    L: tl.constexpr, BLOCK_L: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Programs copy, in turn, the rows that were sent here: those whose flag stands in arrived_V; where that is not
    given, as many as counts_L counts."""
    limit = num_places
    if arrived_V is None:
        lane = tl.arange(0, BLOCK_L)
        limit = tl.sum(tl.load(counts_L + lane, mask=lane < L, other=0), 0).to(tl.int32)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    for first in range(tl.program_id(0) * ROWS, limit, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        is_sent = row < limit
        if arrived_V is not None:
            is_sent = tl.load(arrived_V + row, mask=is_sent, other=0) != 0
        mask = is_sent[:, None] & (column < width)[None, :]
        offset = row[:, None].to(tl.int64) * width + column[None, :]
        tl.store(to_VD + offset, tl.load(from_VD + offset, mask=mask, other=0.0), mask=mask)


@triton.jit
def pull_rows(
    start_T1, row_M, owner_M, place_M, pointers_R, offset, out_TD, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A program reads COLUMNS columns of one token's rows where these were worked on, ROWS at a time, and sums them."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    end = tl.load(start_T1 + token + 1)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(tl.load(start_T1 + token), end, ROWS):
        place = first + tl.arange(0, ROWS)
        is_row = place < end
        row = tl.load(row_M + place, mask=is_row, other=0)
        owner = tl.load(owner_M + row, mask=is_row, other=0)
        theirs = regions(pointers_R, owner, offset, is_row, out_TD.dtype.element_ty)
        place = tl.load(place_M + row, mask=is_row, other=0).to(tl.int64)
        mask = is_row[:, None] & (column < width)[None, :]
        y = tl.load(theirs[:, None] + place[:, None] * width + column[None, :], mask=mask, other=0.0)
        total += tl.sum(widen(y), 0)
    tl.store(out_TD + token * width + column, narrow(total, out_TD.dtype.element_ty), mask=column < width)


@triton.jit(do_not_specialize=["rank", "num_tokens", "most_tokens"])
def pull_copies(
    visited_TR, pointers_R, offset, out_TD, rank, num_tokens, most_tokens, width,
    R: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """A program sums COLUMNS columns of what ROWS tokens became on the ranks that they visited."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = rank * most_tokens + token.to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for peer in range(R):
        visits = tl.load(visited_TR + token.to(tl.int64) * R + peer, mask=token < num_tokens, other=0)
        theirs = region(pointers_R, peer, offset, out_TD.dtype.element_ty)
        mask = (visits != 0)[:, None] & (column < width)[None, :]
        total += widen(tl.load(theirs + place[:, None] * width + column[None, :], mask=mask, other=0.0))
    tl.store(
        out_TD + token[:, None].to(tl.int64) * width + column[None, :], narrow(total, out_TD.dtype.element_ty),
        mask=(token < num_tokens)[:, None] & (column < width)[None, :],
    )


@triton.jit(do_not_specialize=["num_rows"])
def pull_numbers(owner_M, place_M, pointers_R, offset, out_M, num_rows, ROWS: tl.constexpr):
    """A program reads one float32 for each of ROWS rows, from its place."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = row < num_rows
    owner = tl.load(owner_M + row, mask=mask, other=0)
    place = tl.load(place_M + row, mask=mask, other=0)
    theirs = regions(pointers_R, owner, offset, mask, tl.float32) + place
    tl.store(out_M + row, tl.load(theirs, mask=mask, other=0.0), mask=mask)
