"""The feed-forward experts in Triton, as one function with its backward.

Rows' tokens and their gradients are gathered where they are multiplied; of each row only the layers that the activation
is made of are kept. The hidden layer is weighted by the row's gate, which is the same as weighting the expert's output.
With g_m = dy[token_m] W_down, hidden_m = act(first_m) second_m and gate s_m (https://arxiv.org/abs/2512.14080, Sec. 3):
ds_m = <g_m, hidden_m>, and the layers' gradients are those of the activation at s_m g_m.

T tokens, D model width, E experts, F width of an expert, M rows sorted by expert, N tiles, B blocks of columns, P and Q
widths of a matrix. L layers of width F: `first`, the activation's argument, and where experts are gated `second`, its
factor.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.language import INTERPRETING, triton
from kernels.moe import expert_matmul
from kernels.moe.rows import TokenRows, launch_sum
from kernels.moe.sort import expert_tiles, most_tiles
from kernels.operator import operator

Matrices = tuple[Tensor | None, Tensor, Tensor]
"""gate_EFD (None: not gated), up_EFD, down_EDF."""


def fused_expert_ffn(
    x_TD: Tensor, token_M: Tensor, gate_M: Tensor, counts_E: Tensor, matrices: Matrices, activation: str,
    rows: TokenRows, weight_gradients: Matrices | None,
) -> Tensor:
    """`kernels.moe.experts.expert_ffn`, for float32 and bfloat16."""
    gate_EFD, up_EFD, down_EDF = (None if matrix is None else matrix.contiguous() for matrix in matrices)
    first_EFD, second_EFD = (up_EFD, None) if gate_EFD is None else (gate_EFD, up_EFD)
    buffers = None if weight_gradients is None else [buffer for buffer in weight_gradients if buffer is not None]
    assert all(buffer.is_contiguous() for buffer in buffers or ()), "weight_gradients are not contiguous"
    keeps = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x_TD, gate_M, *matrices))
    return _FusedExpertFFN.apply(
        x_TD.contiguous(), token_M.contiguous(), gate_M.contiguous(), counts_E.contiguous(), first_EFD, second_EFD,
        down_EDF, *rows, activation, buffers, keeps,
    )


class _FusedExpertFFN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x_TD: Tensor, token_M: Tensor, gate_M: Tensor, counts_E: Tensor, first_EFD: Tensor,
        second_EFD: Tensor | None, down_EDF: Tensor, start_T1: Tensor, row_M: Tensor, activation: str,
        buffers: list[Tensor] | None, keeps: bool,
    ) -> Tensor:
        y_TD, layer_LMF, start_E1, tile_3N = _forward(
            x_TD, token_M, gate_M, counts_E, first_EFD, second_EFD, down_EDF, start_T1, row_M, activation, keeps
        )
        ctx.save_for_backward(x_TD, token_M, gate_M, first_EFD, second_EFD, down_EDF, layer_LMF, start_E1, tile_3N,
                              start_T1, row_M)
        ctx.activation, ctx.buffers = activation, buffers
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        arguments = dy_TD.contiguous(), *saved, ctx.activation
        if ctx.buffers is None:
            dx_TD, dgate_M, *found = _backward(*arguments, any(ctx.needs_input_grad[4:7]))
            dmatrices = found if len(found) == 3 else (found[0], None, found[1]) if found else (None, None, None)
        else:
            dx_TD, dgate_M = _backward_into(*arguments, ctx.buffers)
            dmatrices = None, None, None
        return dx_TD, None, dgate_M.to(saved[2].dtype), None, *dmatrices, None, None, None, None, None


def _tile_rows(x_TD: Tensor, num_rows: int, num_experts: int) -> int:
    """Rows of a tile; at each expert's end half of one is wasted."""
    if INTERPRETING:
        return 32
    return 128 if x_TD.dtype != torch.float32 and num_rows >= 128 * num_experts else 64


def _blocks(x_TD: Tensor, tile_rows: int, columns: int = 128) -> dict[str, int]:
    """What a program works on. Two of 128 x 128 fit on a multiprocessor; 128 x 256 halve what is loaded."""
    if INTERPRETING:
        return {"ROWS": tile_rows, "COLUMNS": 64, "INNER": 64}
    if x_TD.dtype == torch.float32:
        return {"ROWS": tile_rows, "COLUMNS": 64, "INNER": 32, "num_warps": 8, "num_stages": 3}
    return {"ROWS": tile_rows, "COLUMNS": columns, "INNER": 64, "num_warps": tile_rows // 16, "num_stages": 3}


def _outer_blocks(x_TD: Tensor, width: int) -> dict[str, int]:
    """The same for `outer_products`, of whose matrices width is the number of columns."""
    if INTERPRETING:
        return {"ROWS": 32, "BLOCK_P": 64, "BLOCK_Q": 64}
    if x_TD.dtype == torch.float32:
        return {"ROWS": 32, "BLOCK_P": 64, "BLOCK_Q": 64, "num_warps": 8, "num_stages": 3}
    fills = -(-width // 256) * 2 == -(-width // 128)
    block_p, block_q = (128, 256) if fills else (256, 128)
    return {"ROWS": 64, "BLOCK_P": block_p, "BLOCK_Q": block_q, "num_warps": 8, "num_stages": 5}


def _multiply(
    row_LMF: Tensor, first_E: Tensor, second_E: Tensor | None, out_MD: Tensor, tile_3N: Tensor, tile_rows: int,
    down: bool,
) -> None:
    """Write to out_MD each row times its expert's matrix, over layers."""
    num_rows, num_tiles, d_model, d_expert = len(out_MD), tile_3N.shape[1], out_MD.shape[1], row_LMF.shape[2]
    blocks = _blocks(out_MD, tile_rows, 256 if tile_rows == 128 and d_expert > 256 and d_model > 128 else 128)
    num_steps = len(row_LMF) * triton.cdiv(d_expert, blocks["INNER"])
    expert_matmul.multiply_rows[(num_tiles * triton.cdiv(d_model, blocks["COLUMNS"]),)](
        row_LMF, first_E, second_E, out_MD, tile_3N, num_rows, num_tiles, num_steps, d_model, d_expert, down, **blocks
    )


def _outer(
    left_LMP: Tensor, right_MQ: Tensor, token_M: Tensor, start_E1: Tensor, outs: list[Tensor], adds: bool,
    gathers_left: bool,
) -> None:
    """Write to outs [E, P, Q], or add to them, the sums of outer products, one for each layer."""
    first, second = outs if len(outs) == 2 else (outs[0], None)
    num_experts, p, q = first.shape
    blocks = _outer_blocks(right_MQ, q)
    num_programs = len(outs) * num_experts * triton.cdiv(p, blocks["BLOCK_P"]) * triton.cdiv(q, blocks["BLOCK_Q"])
    expert_matmul.outer_products[(num_programs,)](
        left_LMP, right_MQ, token_M, first, second, start_E1, len(token_M), p, q, gathers_left, adds, **blocks
    )


def _fake_forward(
    x_TD: Tensor, token_M: Tensor, gate_M: Tensor, counts_E: Tensor, first_EFD: Tensor, second_EFD: Tensor | None,
    down_EDF: Tensor, start_T1: Tensor, row_M: Tensor, activation: str, keeps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_experts, num_rows = len(counts_E), len(token_M)
    layer_LMF = x_TD.new_empty(1 if second_EFD is None else 2, num_rows * keeps, first_EFD.shape[1])
    num_tiles = most_tiles(num_rows, num_experts, _tile_rows(x_TD, num_rows, num_experts))
    return (torch.empty_like(x_TD), layer_LMF, start_T1.new_empty(num_experts + 1, dtype=torch.int32),
            start_T1.new_empty(3, num_tiles, dtype=torch.int32))


@operator("expert_ffn", _fake_forward)
def _forward(
    x_TD: Tensor, token_M: Tensor, gate_M: Tensor, counts_E: Tensor, first_EFD: Tensor, second_EFD: Tensor | None,
    down_EDF: Tensor, start_T1: Tensor, row_M: Tensor, activation: str, keeps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y_TD, and for the backward layer_LMF (of no rows unless it `keeps` them) and the tiles."""
    num_rows, (num_experts, d_model, d_expert) = len(token_M), down_EDF.shape
    tile_rows = _tile_rows(x_TD, num_rows, num_experts)
    start_E1, tile_3N = expert_tiles(counts_E, num_rows, tile_rows)
    layer_LMF = x_TD.new_empty(1 if second_EFD is None else 2, num_rows * keeps, d_expert)
    hidden_1MF, y_MD = x_TD.new_empty(1, num_rows, d_expert), x_TD.new_empty(num_rows, d_model)
    blocks = _blocks(x_TD, tile_rows)
    num_tiles = tile_3N.shape[1]
    expert_matmul.up_rows[(num_tiles * triton.cdiv(d_expert, blocks["COLUMNS"]),)](
        x_TD, token_M, gate_M, first_EFD, second_EFD, layer_LMF if keeps else None, hidden_1MF, tile_3N, num_rows,
        num_tiles, d_model, d_expert, activation, **blocks,
    )
    _multiply(hidden_1MF, down_EDF, None, y_MD, tile_3N, tile_rows, down=True)
    y_TD = torch.empty_like(x_TD)
    launch_sum(y_MD, None, TokenRows(start_T1, row_M), y_TD)
    return y_TD, layer_LMF, start_E1, tile_3N


def _fake_backward(
    dy_TD: Tensor, x_TD: Tensor, token_M: Tensor, gate_M: Tensor, first_EFD: Tensor, second_EFD: Tensor | None,
    down_EDF: Tensor, layer_LMF: Tensor, start_E1: Tensor, tile_3N: Tensor, start_T1: Tensor, row_M: Tensor,
    activation: str, learns: bool,
) -> list[Tensor]:
    matrices = [matrix for matrix in (first_EFD, second_EFD, down_EDF) if matrix is not None and learns]
    return [torch.empty_like(x_TD), torch.empty_like(gate_M, dtype=torch.float32), *map(torch.empty_like, matrices)]


@operator("expert_ffn_backward", _fake_backward)
def _backward(
    dy_TD: Tensor, x_TD: Tensor, token_M: Tensor, gate_M: Tensor, first_EFD: Tensor, second_EFD: Tensor | None,
    down_EDF: Tensor, layer_LMF: Tensor, start_E1: Tensor, tile_3N: Tensor, start_T1: Tensor, row_M: Tensor,
    activation: str, learns: bool,
) -> list[Tensor]:
    """Gradients of x, of the gates (float32), and where any of them `learns` of the matrices that there are."""
    matrices = [matrix for matrix in (first_EFD, second_EFD, down_EDF) if matrix is not None and learns]
    outs = [torch.empty_like(matrix) for matrix in matrices]
    return [*_gradients(dy_TD, x_TD, token_M, gate_M, first_EFD, second_EFD, down_EDF, layer_LMF, start_E1, tile_3N,
                        TokenRows(start_T1, row_M), activation, outs, adds=False), *outs]


def _fake_backward_into(*arguments) -> tuple[Tensor, Tensor]:
    dx_TD, dgate_M = _fake_backward(*arguments[:-1], learns=False)
    return dx_TD, dgate_M


@operator("expert_ffn_backward_into", _fake_backward_into, mutates=("buffers",))
def _backward_into(
    dy_TD: Tensor, x_TD: Tensor, token_M: Tensor, gate_M: Tensor, first_EFD: Tensor, second_EFD: Tensor | None,
    down_EDF: Tensor, layer_LMF: Tensor, start_E1: Tensor, tile_3N: Tensor, start_T1: Tensor, row_M: Tensor,
    activation: str, buffers: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """The same, where those of the matrices are added to float32 buffers."""
    return _gradients(dy_TD, x_TD, token_M, gate_M, first_EFD, second_EFD, down_EDF, layer_LMF, start_E1, tile_3N,
                      TokenRows(start_T1, row_M), activation, buffers, adds=True)


def _gradients(
    dy_TD: Tensor, x_TD: Tensor, token_M: Tensor, gate_M: Tensor, first_EFD: Tensor, second_EFD: Tensor | None,
    down_EDF: Tensor, layer_LMF: Tensor, start_E1: Tensor, tile_3N: Tensor, rows: TokenRows, activation: str,
    outs: list[Tensor], adds: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and the gates; those of the matrices go to outs, where there are any."""
    num_layers, num_rows, d_expert = layer_LMF.shape
    num_experts, d_model, num_tiles = len(down_EDF), x_TD.shape[1], tile_3N.shape[1]
    tile_rows = _tile_rows(x_TD, num_rows, num_experts)
    blocks = _blocks(x_TD, tile_rows)
    num_blocks = triton.cdiv(d_expert, blocks["COLUMNS"])
    dlayer_LMF, hidden_MF = torch.empty_like(layer_LMF), torch.empty_like(layer_LMF[0])
    dgate_BM = gate_M.new_empty(num_blocks, num_rows, dtype=torch.float32)
    expert_matmul.hidden_backward[(num_tiles * num_blocks,)](
        dy_TD, token_M, gate_M, down_EDF, layer_LMF, dlayer_LMF, hidden_MF, dgate_BM, tile_3N, num_rows, num_tiles,
        d_model, d_expert, num_layers == 2, activation, **blocks,
    )
    if outs:
        _outer(dy_TD, hidden_MF, token_M, start_E1, outs[-1:], adds, gathers_left=True)
    dx_MD, dx_TD = x_TD.new_empty(num_rows, d_model), torch.empty_like(x_TD)
    _multiply(dlayer_LMF, first_EFD, second_EFD, dx_MD, tile_3N, tile_rows, down=False)
    launch_sum(dx_MD, None, rows, dx_TD)
    if outs:
        _outer(dlayer_LMF, x_TD, token_M, start_E1, outs[:-1], adds, gathers_left=False)
    return dx_TD, dgate_BM.sum(0)
