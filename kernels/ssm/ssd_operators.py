"""Mamba-2's scan by Triton as one differentiable function: which kernels run, over which grids, in what memory.

B batch, S sequence, Z chunks, Q tokens of a chunk, H heads, G groups, R runs of heads, P head width, N state, V and W
vectors of a chunk and head.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.language import INTERPRETING, triton
from kernels.operator import operator
from kernels.ssm.ssd_backward import NUM_GRADIENTS, ssd_decay_gradients, ssd_group_gradients, ssd_head_gradients
from kernels.ssm.ssd_chunk import NUM_VECTORS, ssd_decays
from kernels.ssm.ssd_forward import ssd_carried, ssd_outputs, ssd_states

CHUNK, FLOAT32_CHUNK = 64, 16
"""Tokens of a chunk, of 16-bit and of float32 inputs, whose products are not the tensor cores'."""
PART = 32
"""Tokens of a chunk that a forward kernel pairs with all its tokens at one time."""
STATE_BLOCK = 64
"""Columns of a state that a program takes where others can take the rest."""
HEAD_BLOCK, WIDE_HEAD_BLOCK, FLOAT32_HEAD_BLOCK = 64, 32, 16
"""Of a head's width, what a program takes at one time where it sums over heads: of up to 64 numbers of 16 bits all, of
more, and of float32."""
STEP, FLOAT32_STEP = 64, 16
"""Columns of a state that a program multiplies by at one time, of 16-bit and of float32 inputs."""
LARGEST_CARRIED = 64 * 128
"""Numbers of a state that a program can carry in registers, where inputs are of 16 bits."""
DECAY_HEADS = 16
"""Heads whose decays a program computes: 64 bytes of a token's dt."""
CARRIED_PROGRAMS = 264
"""Heads times sequences from which on the state is carried: two programs for each of 132 multiprocessors."""
GROUP_PROGRAMS = 528
"""Programs to aim for where each sums dB and dC over heads: what a group's heads are cut into, each run's sums in
float32, is as little as that takes."""


class SSD(torch.autograd.Function):
    """`kernels.ssm.ssd.ssd` of contiguous tensors: x, B and C of one dtype, all others float32.

    Keeps its arguments for the backward, and no state: in bfloat16 a token's share of the states between chunks is
    P N / 32 bytes a head, N / 64 times its x. The backward computes them again, and holds them and their gradients, as
    many bytes, until it returns.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_BSHP: Tensor, dt_BSH: Tensor, A_H: Tensor, B_BSGN: Tensor, C_BSGN: Tensor, D_H: Tensor,
        document_BS: Tensor | None, state_BHPN: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        arguments = x_BSHP, dt_BSH, A_H, B_BSGN, C_BSGN, D_H, document_BS, state_BHPN
        ctx.save_for_backward(*arguments)
        ctx.set_materialize_grads(False)
        return _forward(*arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_BSHP: Tensor | None, dfinal_BHPN: Tensor | None) -> tuple[Tensor | None, ...]:
        arguments = ctx.saved_tensors
        dtype, state_BHPN = arguments[0].dtype, arguments[-1]
        dy_BSHP = torch.zeros_like(arguments[0]) if dy_BSHP is None else dy_BSHP.contiguous()
        dfinal_BHPN = None if dfinal_BHPN is None else dfinal_BHPN.contiguous()
        dx, ddt, dA_BZH, dB_RBSGN, dC_RBSGN, dD_BZH, dstate = _backward(dy_BSHP, dfinal_BHPN, *arguments)
        dB, dC = (runs_R[0] if len(runs_R) == 1 else runs_R.sum(0).to(dtype) for runs_R in (dB_RBSGN, dC_RBSGN))
        return (dx, ddt, dA_BZH.sum((0, 1)), dB, dC, dD_BZH.sum((0, 1)), None,
                None if state_BHPN is None else dstate)


def _chunk_size(x_BSHP: Tensor) -> int:
    return CHUNK if x_BSHP.element_size() == 2 else FLOAT32_CHUNK


def _sizes(x_BSHP: Tensor, B_BSGN: Tensor, most_columns: int = 2**16, most_rows: int = 2**16) -> dict[str, int]:
    """What kernels are compiled for; a program takes at most so many columns (N) and rows (P) of a state at once."""
    (num_heads, head_dim), (num_groups, d_state) = x_BSHP.shape[2:], B_BSGN.shape[2:]
    # Tensor cores take blocks of 16 and more, and four warps the 64 rows of a tile: of eight, two would hold the same.
    block_P, block_N = (max(16, triton.next_power_of_2(size)) for size in (head_dim, d_state))
    block_P, block_N = min(block_P, most_rows), min(block_N, most_columns)
    is_small = x_BSHP.element_size() == 2 and block_P <= 64
    return {
        "H": num_heads, "G": num_groups, "P": head_dim, "N": d_state, "Q": _chunk_size(x_BSHP), "BLOCK_P": block_P,
        "BLOCK_N": block_N, "num_warps": 4 if is_small else 8, "num_stages": 2,
    }


def _step(x_BSHP: Tensor) -> int:
    """Columns of a state that a program multiplies by at one time, where it goes through all of them."""
    return STEP if x_BSHP.element_size() == 2 else FLOAT32_STEP


def _head_block(x_BSHP: Tensor) -> int:
    if x_BSHP.element_size() != 2:
        return FLOAT32_HEAD_BLOCK
    return HEAD_BLOCK if x_BSHP.shape[3] <= HEAD_BLOCK else WIDE_HEAD_BLOCK


def _is_carried(x_BSHP: Tensor, sizes: dict[str, int]) -> bool:
    """Whether a forward carries states in registers: there are programs enough, and a state is not too large."""
    if x_BSHP.shape[0] * x_BSHP.shape[2] < CARRIED_PROGRAMS:
        return False
    is_small = x_BSHP.element_size() == 2 and sizes["BLOCK_P"] * sizes["BLOCK_N"] <= LARGEST_CARRIED
    return is_small or INTERPRETING


def _new_state(x_BSHP: Tensor, B_BSGN: Tensor) -> Tensor:
    batch_size, _, num_heads, head_dim = x_BSHP.shape
    return x_BSHP.new_empty(batch_size, num_heads, head_dim, B_BSGN.shape[3], dtype=torch.float32)


def _decays(
    dt_BSH: Tensor, A_H: Tensor, document_BS: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor | None]:
    """[B, H, Z, V, Q] and, where there are documents, int32 [B, Z, Q]; see `ssd_decays`."""
    batch_size, seq_len, num_heads = dt_BSH.shape
    num_chunks = triton.cdiv(seq_len, chunk_size)
    decays_BHZVQ = dt_BSH.new_empty(batch_size, num_heads, num_chunks, NUM_VECTORS, chunk_size)
    segment_BZQ = None
    if document_BS is not None:
        segment_BZQ = document_BS.new_empty(batch_size, num_chunks, chunk_size, dtype=torch.int32)
    ssd_decays[num_chunks, triton.cdiv(num_heads, DECAY_HEADS), batch_size](
        dt_BSH, A_H, document_BS, decays_BHZVQ, segment_BZQ, seq_len, num_heads, Q=chunk_size, BLOCK_H=DECAY_HEADS
    )
    return decays_BHZVQ, segment_BZQ


def _states(
    rows_BSHP: Tensor, decays_BHZVQ: Tensor, columns_BSGN: Tensor, state_BHPN: Tensor | None, last_BHPN: Tensor,
    reverse: bool,
) -> Tensor:
    """[B, Z, H, P, N] of x's dtype, and in last_BHPN the one after them; see `ssd_states`."""
    batch_size, seq_len, num_heads, head_dim = rows_BSHP.shape
    num_chunks, sizes = decays_BHZVQ.shape[2], _sizes(rows_BSHP, columns_BSGN, STATE_BLOCK)
    states_BZHPN = rows_BSHP.new_empty(batch_size, num_chunks, num_heads, head_dim, sizes["N"])
    ssd_states[num_heads, batch_size, triton.cdiv(sizes["N"], sizes["BLOCK_N"])](
        rows_BSHP, decays_BHZVQ, columns_BSGN, state_BHPN, states_BZHPN, last_BHPN, seq_len, num_chunks,
        REVERSE=reverse, **sizes,
    )
    return states_BZHPN


def _fake_forward(
    x_BSHP: Tensor, dt_BSH: Tensor, A_H: Tensor, B_BSGN: Tensor, C_BSGN: Tensor, D_H: Tensor,
    document_BS: Tensor | None, state_BHPN: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_BSHP), _new_state(x_BSHP, B_BSGN)


@operator("ssd", _fake_forward)
def _forward(
    x_BSHP: Tensor, dt_BSH: Tensor, A_H: Tensor, B_BSGN: Tensor, C_BSGN: Tensor, D_H: Tensor,
    document_BS: Tensor | None, state_BHPN: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y of x's dtype and shape, and the state after the last token, float32."""
    y_BSHP, final_BHPN = torch.empty_like(x_BSHP), _new_state(x_BSHP, B_BSGN)
    (batch_size, seq_len, num_heads, _), sizes = x_BSHP.shape, _sizes(x_BSHP, B_BSGN)
    decays_BHZVQ, segment_BZQ = _decays(dt_BSH, A_H, document_BS, sizes["Q"])
    inputs, num_chunks = (x_BSHP, decays_BHZVQ, segment_BZQ, B_BSGN, C_BSGN, D_H), decays_BHZVQ.shape[2]
    if _is_carried(x_BSHP, sizes):
        ssd_carried[num_heads, batch_size](
            *inputs, state_BHPN, y_BSHP, final_BHPN, seq_len, num_chunks, K=min(PART, sizes["Q"]), **sizes
        )
    else:
        entering_BZHPN = _states(x_BSHP, decays_BHZVQ, B_BSGN, state_BHPN, final_BHPN, reverse=False)
        ssd_outputs[num_heads * num_chunks, batch_size](
            *inputs, entering_BZHPN, y_BSHP, seq_len, **_sizes(x_BSHP, B_BSGN, _step(x_BSHP))
        )
    return y_BSHP, final_BHPN


def _heads_of_run(x_BSHP: Tensor, B_BSGN: Tensor) -> int:
    (batch_size, seq_len, num_heads, _), (num_groups, d_state) = x_BSHP.shape, B_BSGN.shape[2:]
    num_chunks, blocks = triton.cdiv(seq_len, _chunk_size(x_BSHP)), triton.cdiv(d_state, STATE_BLOCK)
    runs = triton.cdiv(GROUP_PROGRAMS, batch_size * num_chunks * num_groups * blocks)
    return triton.cdiv(num_heads // num_groups, runs)


def _fake_backward(
    dy_BSHP: Tensor, dfinal_BHPN: Tensor | None, x_BSHP: Tensor, dt_BSH: Tensor, A_H: Tensor, B_BSGN: Tensor,
    C_BSGN: Tensor, D_H: Tensor, document_BS: Tensor | None, state_BHPN: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch_size, seq_len, num_heads, _ = x_BSHP.shape
    shares = (batch_size, triton.cdiv(seq_len, _chunk_size(x_BSHP)), num_heads)
    runs = triton.cdiv(num_heads // B_BSGN.shape[2], _heads_of_run(x_BSHP, B_BSGN))
    dB_RBSGN, dC_RBSGN = (
        B_BSGN.new_empty(runs, *B_BSGN.shape, dtype=B_BSGN.dtype if runs == 1 else torch.float32) for _ in "BC"
    )
    return (torch.empty_like(x_BSHP), torch.empty_like(dt_BSH), A_H.new_empty(shares), dB_RBSGN, dC_RBSGN,
            A_H.new_empty(shares), _new_state(x_BSHP, B_BSGN))


@operator("ssd_backward", _fake_backward)
def _backward(
    dy_BSHP: Tensor, dfinal_BHPN: Tensor | None, x_BSHP: Tensor, dt_BSH: Tensor, A_H: Tensor, B_BSGN: Tensor,
    C_BSGN: Tensor, D_H: Tensor, document_BS: Tensor | None, state_BHPN: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, ddt, shares of dA [B, Z, H], of dB and dC [R, B, S, G, N], of dD [B, Z, H], and the initial state's gradient.
    """
    results = _fake_backward(dy_BSHP, dfinal_BHPN, x_BSHP, dt_BSH, A_H, B_BSGN, C_BSGN, D_H, document_BS, state_BHPN)
    dx_BSHP, ddt_BSH, dA_BZH, dB_RBSGN, dC_RBSGN, dD_BZH, dstate_BHPN = results
    (batch_size, seq_len, num_heads, _), sizes = x_BSHP.shape, _sizes(x_BSHP, B_BSGN, _step(x_BSHP))
    decays_BHZVQ, segment_BZQ = _decays(dt_BSH, A_H, document_BS, sizes["Q"])
    # The final state is not asked for: the gradient of the initial one is written over it.
    entering_BZHPN = _states(x_BSHP, decays_BHZVQ, B_BSGN, state_BHPN, dstate_BHPN, reverse=False)
    dleaving_BZHPN = _states(dy_BSHP, decays_BHZVQ, C_BSGN, dfinal_BHPN, dstate_BHPN, reverse=True)

    inputs, num_chunks = (dy_BSHP, x_BSHP, decays_BHZVQ, segment_BZQ, B_BSGN, C_BSGN), decays_BHZVQ.shape[2]
    gradients_BHZWQ = dt_BSH.new_empty(batch_size, num_heads, num_chunks, NUM_GRADIENTS, sizes["Q"])
    ssd_head_gradients[num_heads * num_chunks, batch_size](
        *inputs, D_H, entering_BZHPN, dleaving_BZHPN, dx_BSHP, gradients_BHZWQ, seq_len, **sizes
    )
    ssd_decay_gradients[num_chunks, triton.cdiv(num_heads, DECAY_HEADS), batch_size](
        gradients_BHZWQ, dt_BSH, A_H, ddt_BSH, dA_BZH, dD_BZH, seq_len, num_heads, Q=sizes["Q"], BLOCK_H=DECAY_HEADS
    )
    sizes = _sizes(x_BSHP, B_BSGN, STATE_BLOCK, _head_block(x_BSHP))
    blocks = triton.cdiv(sizes["N"], sizes["BLOCK_N"])
    ssd_group_gradients[blocks * len(dB_RBSGN) * sizes["G"] * num_chunks, batch_size](
        *inputs, entering_BZHPN, dleaving_BZHPN, dB_RBSGN, dC_RBSGN, seq_len, _heads_of_run(x_BSHP, B_BSGN), **sizes
    )
    return results
