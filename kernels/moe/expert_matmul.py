"""Matrix products of rows sorted by expert, each row with its expert's matrix, in Triton.

Rows that belong to tokens are gathered as they are loaded, and activations are part of what stores a product: no
permuted copy of tokens exists. Tiles are those of `expert_tiles`. Neighbouring programs work on the same rows, so that
these come from memory once.

T tokens, D model width, E experts, F width of an expert, M rows, N tiles, P and Q widths of a matrix. L layers of width
F: what the activation is applied to, and where experts are gated what its result is multiplied by.
"""

from kernels.language import INTERPRETING, dot, narrow, tl, triton, widen

SLICES = tl.constexpr(2 if INTERPRETING else 8)
"""Parts in which an accumulator's columns are taken when it is stored: what else that needs fits into registers."""


@triton.jit(do_not_specialize=["num_rows", "num_tiles"])
def up_rows(
    x_TD, token_M, gate_M, first_EFD, second_EFD, layer_LMF, hidden_MF, tile_3N, num_rows, num_tiles,
    D: tl.constexpr, F: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):
    """The layers of each row's token, written where a backward is to come, and the hidden layer made of them times the
    row's gate."""
    blocks: tl.constexpr = (F + COLUMNS - 1) // COLUMNS
    tile, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    expert = tl.load(tile_3N + tile)
    if expert < 0:
        return
    row, is_row = rows_of_tile(tile_3N, tile, num_tiles, ROWS)
    token = tl.load(token_M + row, mask=is_row, other=0).to(tl.int64)
    column, inner = block * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, INNER)
    is_column = is_within(column, F, COLUMNS)
    x = x_TD + token[:, None] * D + inner[None, :]
    weight = expert.to(tl.int64) * (F * D) + column[None, :] * D + inner[:, None]

    first = tl.zeros((ROWS, COLUMNS), tl.float32)
    if second_EFD is not None:
        second = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, D, INNER):
        is_inner = is_within(start + inner, D, INNER)
        x_block = tl.load(x + start, mask=is_row[:, None] & is_inner[None, :], other=0.0)
        is_weight = is_inner[:, None] & is_column[None, :]
        first = dot(x_block, tl.load(first_EFD + weight + start, mask=is_weight, other=0.0), first)
        if second_EFD is not None:
            second = dot(x_block, tl.load(second_EFD + weight + start, mask=is_weight, other=0.0), second)

    gate = widen(tl.load(gate_M + row, mask=is_row, other=0.0))
    first_parts = slices(first, ROWS, COLUMNS, SLICES)
    if second_EFD is not None:
        second_parts = slices(second, ROWS, COLUMNS, SLICES)
    shift = tl.cast(num_rows, tl.int64) * F
    dtype: tl.constexpr = hidden_MF.dtype.element_ty
    for part in tl.static_range(SLICES):
        column = block * COLUMNS + part * (COLUMNS // SLICES) + tl.arange(0, COLUMNS // SLICES)
        mask = is_row[:, None] & is_within(column, F, COLUMNS)[None, :]
        offset = row[:, None] * F + column[None, :]
        if layer_LMF is not None:
            tl.store(layer_LMF + offset, narrow(first_parts[part], dtype), mask=mask)
        hidden, _ = activate(first_parts[part], ACTIVATION)
        if second_EFD is not None:
            if layer_LMF is not None:
                tl.store(layer_LMF + shift + offset, narrow(second_parts[part], dtype), mask=mask)
            hidden *= second_parts[part]
        tl.store(hidden_MF + offset, narrow(hidden * gate[:, None], dtype), mask=mask)


@triton.jit(do_not_specialize=["num_rows", "num_tiles", "num_steps"])
def multiply_rows(
    row_LMF, first_E, second_E, out_MD, tile_3N, num_rows, num_tiles, num_steps,
    D: tl.constexpr, F: tl.constexpr, DOWN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):
    """Each row times its expert's matrix, [D, F] where DOWN, else [F, D]; of two layers the sum of both products.

    num_steps: INNER columns each, of all layers. It is no constant, so that the compiler does not unroll the loop:
    unrolled it needs more registers than there are.
    """
    blocks: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    tile, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    expert = tl.load(tile_3N + tile)
    if expert < 0:
        return
    row, is_row = rows_of_tile(tile_3N, tile, num_tiles, ROWS)
    column, inner = block * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, INNER)
    is_column = is_within(column, D, COLUMNS)
    source = row_LMF + row[:, None] * F + inner[None, :]
    step_inner: tl.constexpr = 1 if DOWN else D
    step_column: tl.constexpr = F if DOWN else 1
    weight = expert.to(tl.int64) * (F * D) + column[None, :] * step_column + inner[:, None] * step_inner
    steps: tl.constexpr = (F + INNER - 1) // INNER

    out = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(0, num_steps):
        matrix, rows, start = first_E, source, step * INNER
        if second_E is not None:
            layer = step // steps
            start = (step - layer * steps) * INNER
            matrix = tl.where(layer == 0, first_E, second_E)
            rows = source + tl.cast(layer, tl.int64) * num_rows * F
        is_inner = is_within(start + inner, F, INNER)
        left = tl.load(rows + start, mask=is_row[:, None] & is_inner[None, :], other=0.0)
        right = tl.load(
            matrix + weight + start * step_inner, mask=is_inner[:, None] & is_column[None, :], other=0.0
        )
        out = dot(left, right, out)
    mask = is_row[:, None] & is_column[None, :]
    tl.store(out_MD + row[:, None] * D + column[None, :], narrow(out, out_MD.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows", "num_tiles"])
def hidden_backward(
    dy_TD, token_M, gate_M, down_EDF, layer_LMF, dlayer_LMF, hidden_MF, dgate_BM, tile_3N, num_rows, num_tiles,
    D: tl.constexpr, F: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):
    """From dy: the layers' gradients, the hidden layer times the gate, and a block's share of the gates' gradient.

    The accumulator is taken in slices of columns one after another, for there are not registers enough to hold the
    layers beside all of it.
    """
    blocks: tl.constexpr = (F + COLUMNS - 1) // COLUMNS
    tile, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    expert = tl.load(tile_3N + tile)
    if expert < 0:
        return
    row, is_row = rows_of_tile(tile_3N, tile, num_tiles, ROWS)
    token = tl.load(token_M + row, mask=is_row, other=0).to(tl.int64)
    column, inner = block * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, INNER)
    is_column = is_within(column, F, COLUMNS)
    dy = dy_TD + token[:, None] * D + inner[None, :]
    weight = down_EDF + expert.to(tl.int64) * (D * F) + inner[:, None] * F + column[None, :]

    dhidden = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, D, INNER):
        is_inner = is_within(start + inner, D, INNER)
        left = tl.load(dy + start, mask=is_row[:, None] & is_inner[None, :], other=0.0)
        right = tl.load(weight + start * F, mask=is_inner[:, None] & is_column[None, :], other=0.0)
        dhidden = dot(left, right, dhidden)

    gate = widen(tl.load(gate_M + row, mask=is_row, other=0.0))
    parts = slices(dhidden, ROWS, COLUMNS, SLICES)
    dgate = tl.zeros((ROWS,), tl.float32)
    shift = tl.cast(num_rows, tl.int64) * F
    dtype: tl.constexpr = hidden_MF.dtype.element_ty
    for part in tl.static_range(SLICES):
        column = block * COLUMNS + part * (COLUMNS // SLICES) + tl.arange(0, COLUMNS // SLICES)
        mask = is_row[:, None] & is_within(column, F, COLUMNS)[None, :]
        offset = row[:, None] * F + column[None, :]
        activated, derivative = activate(widen(tl.load(layer_LMF + offset, mask=mask, other=0.0)), ACTIVATION)
        hidden = activated
        if GATED:
            second = widen(tl.load(layer_LMF + shift + offset, mask=mask, other=0.0))
            hidden = activated * second
            derivative *= second
        tl.store(hidden_MF + offset, narrow(hidden * gate[:, None], dtype), mask=mask)
        dgate += tl.sum(parts[part] * hidden, 1)
        dhidden = parts[part] * gate[:, None]
        tl.store(dlayer_LMF + offset, narrow(dhidden * derivative, dtype), mask=mask)
        if GATED:
            tl.store(dlayer_LMF + shift + offset, narrow(dhidden * activated, dtype), mask=mask)
    tl.store(dgate_BM + tl.cast(block, tl.int64) * num_rows + row, dgate, mask=is_row)


@triton.jit(do_not_specialize=["num_rows"])
def outer_products(
    left_LMP, right_MQ, token_M, first_EPQ, second_EPQ, start_E1, num_rows,
    P: tl.constexpr, Q: tl.constexpr, GATHERS_LEFT: tl.constexpr, ADDS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
):
    """For each expert the sum over its rows of left right^T, of either layer of left; one side is gathered from tokens.

    ADDS: to what stands there, in float32. A program works on a block of one matrix.
    """
    layers: tl.constexpr = 1 if second_EPQ is None else 2
    blocks_p: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    blocks_q: tl.constexpr = (Q + BLOCK_Q - 1) // BLOCK_Q
    program = tl.program_id(0)
    expert, block = program // (layers * blocks_p * blocks_q), program % (layers * blocks_p * blocks_q)
    start, end = tl.load(start_E1 + expert), tl.load(start_E1 + expert + 1)
    left, out_EPQ = left_LMP, first_EPQ
    if second_EPQ is not None:
        layer, block = block // (blocks_p * blocks_q), block % (blocks_p * blocks_q)
        left = left_LMP + tl.cast(layer, tl.int64) * num_rows * P
        out_EPQ = tl.where(layer == 0, first_EPQ, second_EPQ)
    p, q = block // blocks_q * BLOCK_P + tl.arange(0, BLOCK_P), block % blocks_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    is_p, is_q = is_within(p, P, BLOCK_P), is_within(q, Q, BLOCK_Q)

    out = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
    for first_row in range(start, end, ROWS):
        row = first_row + tl.arange(0, ROWS)
        is_row = row < end
        token = tl.load(token_M + row, mask=is_row, other=0).to(tl.int64)
        row_left, row_right = (token, row.to(tl.int64)) if GATHERS_LEFT else (row.to(tl.int64), token)
        mask_left, mask_right = is_row[:, None] & is_p[None, :], is_row[:, None] & is_q[None, :]
        left_block = tl.load(left + row_left[:, None] * P + p[None, :], mask=mask_left, other=0.0)
        right_block = tl.load(right_MQ + row_right[:, None] * Q + q[None, :], mask=mask_right, other=0.0)
        out = dot(tl.trans(left_block), right_block, out)

    parts = slices(out, BLOCK_P, BLOCK_Q, SLICES)
    for part in tl.static_range(SLICES):
        q = block % blocks_q * BLOCK_Q + part * (BLOCK_Q // SLICES) + tl.arange(0, BLOCK_Q // SLICES)
        pointer = out_EPQ + expert.to(tl.int64) * (P * Q) + p[:, None] * Q + q[None, :]
        mask, total = is_p[:, None] & is_within(q, Q, BLOCK_Q)[None, :], parts[part]
        if ADDS:
            total += tl.load(pointer, mask=mask, other=0.0)
        tl.store(pointer, narrow(total, out_EPQ.dtype.element_ty), mask=mask)


@triton.jit
def rows_of_tile(tile_3N, tile, num_tiles, ROWS: tl.constexpr):
    """The rows of a tile, int64, and which of them there are."""
    row = tl.load(tile_3N + num_tiles + tile) + tl.arange(0, ROWS)
    return row.to(tl.int64), row < tl.load(tile_3N + 2 * num_tiles + tile)


@triton.jit
def is_within(position, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """position < SIZE; known to the compiler where blocks fill SIZE, so that it masks nothing."""
    if SIZE % BLOCK == 0:
        return tl.full(position.shape, True, tl.int1)
    else:
        return position < SIZE


@triton.jit
def slices(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NUM: tl.constexpr):
    """A tuple of NUM slices of x's columns, in order; NUM is a power of two."""
    if NUM == 1:
        return (x,)
    else:
        left, right = tl.split(tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        return slices(left, ROWS, COLUMNS // 2, NUM // 2) + slices(right, ROWS, COLUMNS // 2, NUM // 2)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation at x, and its derivative; both as in `kernels.activations`."""
    if ACTIVATION == "swiglu":
        sigmoid = tl.sigmoid(x)
        return x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))
    elif ACTIVATION == "gelu":
        normal = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        return x * normal, normal + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    elif ACTIVATION == "relu2":
        positive = tl.maximum(x, 0.0)
        return positive * positive, 2 * positive
    else:
        return tl.maximum(x, 0.0), (x > 0).to(tl.float32)
