"""Sums over the channels of a program of Mamba-1's selective scan: what they give the gradients of B and C.

I channels, N state.
"""

from kernels.language import tl, triton


@triton.jit
def add_shares(
    x, stride, state, token, seq_len, tiles, block, N: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Adds sums over channels, of each token for B and then for C, to what the program's blocks of channels before
    this one have stored; the first one stores. stride: numbers from B's to C's."""
    sums = sums_over_channels(tiles, 2 * TOKENS, ROWS)
    for m in tl.static_range(2 * TOKENS // ROWS):
        place = m * ROWS + tl.arange(0, ROWS)
        pointer = (x + (place // TOKENS) * stride + (place % TOKENS) * N)[:, None] + state[None, :]
        is_there = (place % TOKENS < seq_len - token)[:, None] & (state < N)[None, :]
        value = sums[m]
        if BLOCKS > 1:
            value += tl.load(pointer, mask=is_there & (state < tl.where(block > 0, N, 0))[None, :], other=0.0)
        tl.store(pointer, value, mask=is_there)


@triton.jit
def sums_over_channels(tiles, COUNT: tl.constexpr, ROWS: tl.constexpr):
    """The sums over the rows of each tile, as the rows, in order, of fewer tiles, or of one, whose rows are as many.

    Two tiles become one, half of whose rows are of each: threads exchange half of what they hold, once for both.
    """
    for level in tl.static_range(8):
        if 2 ** level < ROWS:
            merged = ()
            for pair in tl.static_range(COUNT // 2 ** (level + 1)):
                merged = merged + (merge_tiles(tiles[2 * pair], tiles[2 * pair + 1], 2 ** level),)
            tiles = merged
    return tiles


@triton.jit
def merge_tiles(even, odd, DISTANCE: tl.constexpr):
    """Of rows that are DISTANCE apart the sum: the first is that of one tile, the second of the other."""
    row = tl.broadcast_to(tl.arange(0, even.shape[0])[:, None], even.shape)
    is_odd = (row & DISTANCE) != 0
    return tl.where(is_odd, odd, even) + tl.gather(tl.where(is_odd, even, odd), row ^ DISTANCE, 0)


@triton.jit
def fold(x_IN, ROWS: tl.constexpr):
    """The sum of every ROWS-th row."""
    return tl.sum(tl.reshape(x_IN, (x_IN.shape[0] // ROWS, ROWS, x_IN.shape[1])), 0)
