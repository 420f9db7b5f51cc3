"""What a program of Mamba-1's selective scan loads and stores: states, and blocks of columns of a few tokens.

I channels, N state.
"""

from kernels.language import narrow, tl, triton, widen


@triton.jit
def biases_at_starts(document, token, seq_len, TOKENS: tl.constexpr, WHOLE: tl.constexpr):
    """Of each token what the logarithm of its decay gets: minus infinity where a document starts, else nothing."""
    biases = ()
    if document is None:
        for _ in tl.static_range(TOKENS):
            biases = biases + (0.0,)
    else:
        before = tl.load(document + tl.maximum(tl.minimum(token, seq_len) - 1, 0))
        for t in tl.static_range(TOKENS):
            if WHOLE:
                here = tl.load(document + token + t)
            else:
                here = tl.load(document + tl.minimum(token + t, seq_len - 1))
            biases = biases + (tl.where(here != before, float("-inf"), 0.0),)
            before = here
    return biases


@triton.jit
def load_states(x, place, channel, state, CHANNELS: tl.constexpr, N: tl.constexpr):
    """[I, N] in float32, zero where there is nothing."""
    pointer = x + tl.cast(place, tl.int64) * CHANNELS * N + channel[:, None] * N + state[None, :]
    return widen(tl.load(pointer, mask=(channel < CHANNELS)[:, None] & (state < N)[None, :], other=0.0))


@triton.jit
def store_states(x, place, channel, state, value, CHANNELS: tl.constexpr, N: tl.constexpr):
    pointer = x + tl.cast(place, tl.int64) * CHANNELS * N + channel[:, None] * N + state[None, :]
    tl.store(pointer, value, mask=(channel < CHANNELS)[:, None] & (state < N)[None, :])


@triton.jit
def load_channels(x, channel, CHANNELS: tl.constexpr):
    return widen(tl.load(x + channel, mask=channel < CHANNELS, other=0.0))


@triton.jit
def load_tokens(x, column, token, seq_len, WIDTH: tl.constexpr, TOKENS: tl.constexpr, ALL: tl.constexpr):
    """Of each token a block of columns in float32, zero where there is nothing; x points to the first one's row.
    ALL: all columns of all tokens exist."""
    values = ()
    for t in tl.static_range(TOKENS):
        if ALL:
            value = tl.load(x + column + t * WIDTH)
        else:
            value = tl.load(x + column + t * WIDTH, mask=column < tl.where(token + t < seq_len, WIDTH, 0), other=0.0)
        values = values + (widen(value),)
    return values


@triton.jit
def store_tokens(x, column, token, seq_len, values, WIDTH: tl.constexpr, TOKENS: tl.constexpr, ALL: tl.constexpr):
    for t in tl.static_range(TOKENS):
        value = narrow(values[t], x.dtype.element_ty)
        if ALL:
            tl.store(x + column + t * WIDTH, value)
        else:
            tl.store(x + column + t * WIDTH, value, mask=column < tl.where(token + t < seq_len, WIDTH, 0))
