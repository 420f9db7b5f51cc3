"""`expert_ffn` against a loop over rows in float64.

T tokens, D model width, E experts, F width of an expert, M routed rows.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kernels.moe.experts
import kernels.moe.grouped_matmul
from kernels import expert_ffn
from kernels.moe.grouped_matmul import ExpertBlock

ACTIVATIONS = {"swiglu": F.silu, "gelu": F.gelu, "relu": F.relu, "relu2": lambda x: F.relu(x) ** 2}
TOLERANCE = {torch.float64: 2e-15, torch.float32: 1e-6, torch.bfloat16: 1.5e-2}


def row_by_row(x_TD, token_M, gate_M, counts_E, gate_EFD, up_EFD, down_EDF, activation):
    expert_M = torch.repeat_interleave(torch.arange(len(counts_E)), counts_E)
    floats = [x_TD, gate_M, up_EFD, down_EDF] if gate_EFD is None else [x_TD, gate_M, gate_EFD, up_EFD, down_EDF]
    y_TD = torch.zeros_like(x_TD) + sum(0 * tensor.sum() for tensor in floats)
    for token, gate, expert in zip(token_M, gate_M, expert_M, strict=True):
        up = up_EFD[expert] @ x_TD[token]
        act = ACTIVATIONS[activation]
        hidden = act(up) if gate_EFD is None else act(gate_EFD[expert] @ x_TD[token]) * up
        y_TD = y_TD.index_add(0, token[None], (down_EDF[expert] @ hidden)[None] * gate)
    return y_TD


def inputs(counts, activation, dtype=torch.float64, num_tokens=7, d_model=8, d_expert=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts_E = torch.tensor(counts)
    num_rows, num_experts = int(counts_E.sum()), len(counts)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    token_M = torch.randint(num_tokens, (num_rows,), generator=generator)
    gate_M = normal(num_rows).to(torch.promote_types(dtype, torch.float32))
    gate_EFD = normal(num_experts, d_expert, d_model) if activation == "swiglu" else None
    return (normal(num_tokens, d_model), token_M, gate_M, counts_E, gate_EFD,
            normal(num_experts, d_expert, d_model), normal(num_experts, d_model, d_expert), activation)


def output_and_gradients(function, arguments, dy_TD, dtype=None):
    """The output and every gradient, computed in dtype, or in that of the arguments."""
    leaves = [argument.detach().to(dtype or argument.dtype).requires_grad_()
              if torch.is_tensor(argument) and argument.is_floating_point() else argument for argument in arguments]
    y_TD = function(*leaves)
    y_TD.backward(dy_TD.to(y_TD.dtype))
    return [y_TD, *(leaf.grad for leaf in leaves if torch.is_tensor(leaf) and leaf.is_floating_point())]


def check(arguments, tolerance, cancelled=1e-30):
    """cancelled: size of the terms that a sum may lose to each other; rounding is relative to them, not to the sum."""
    dy_TD = torch.randn(arguments[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dy_TD = dy_TD.to(arguments[0].dtype)
    got = output_and_gradients(expert_ffn, arguments, dy_TD)
    expected = output_and_gradients(row_by_row, arguments, dy_TD, torch.float64)
    for tensor, reference in zip(got, expected, strict=True):
        assert (tensor.double() - reference).norm() <= tolerance * (reference.norm() + cancelled)
    return got


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_a_loop_over_rows(activation, dtype):
    got = check(inputs([3, 0, 9, 7, 0], activation, dtype), TOLERANCE[dtype])
    assert got[0].dtype == dtype
    for gradient in got[3:]:
        assert not gradient[[1, 4]].any()  # experts without rows


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=6), block_rows=st.integers(1, 12),
    activation=st.sampled_from(list(ACTIVATIONS)), sizes=st.tuples(*[st.integers(1, 9)] * 3), seed=st.integers(0, 99),
)
@example(counts=[2], block_rows=1, activation="relu", sizes=(3, 8, 4), seed=24)  # its terms nearly cancel
def test_equals_a_loop_over_rows_whatever_the_counts(counts, block_rows, activation, sizes, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels.moe.grouped_matmul, "BLOCK_ROWS", block_rows)
        check(inputs(counts, activation, torch.float64, *sizes, seed), 1e-14, cancelled=1.0)


@pytest.mark.parametrize("num_tokens", [0, 4])
def test_without_rows_the_output_is_zero_and_stays_in_the_graph(num_tokens):
    x_TD, *rest = inputs([0, 0], "swiglu", num_tokens=4)
    got = output_and_gradients(expert_ffn, (x_TD[:num_tokens], *rest), torch.ones(num_tokens, 8))
    assert all(tensor is not None and not tensor.any() for tensor in got)


@pytest.mark.parametrize("d_expert", [24, 13], ids=["whole 16 bytes", "odd width"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_the_body_for_gpus_equals_a_loop_over_rows(activation, dtype, d_expert, monkeypatch):
    """PyTorch's grouped_mm runs on the CPU too, so the arguments that it gets can be checked here."""

    def one_block(counts_E):
        block = ExpertBlock(slice(None), slice(None), counts_E)
        block.on_cpu = False
        yield block

    monkeypatch.setattr(kernels.moe.experts, "expert_blocks", one_block)
    check(inputs([3, 0, 9, 7, 0], activation, dtype, d_model=16, d_expert=d_expert), TOLERANCE[dtype])


def test_experts_without_rows_get_zero_where_grouped_mm_leaves_what_memory_held(monkeypatch):
    """As grouped_mm does on Blackwell."""
    grouped_mm = F.grouped_mm

    def unclean(rows, other, offs):
        out = grouped_mm(rows, other, offs=offs)
        if other.dim() == 2:
            out[offs.diff(prepend=offs.new_zeros(1)) == 0] = torch.nan
        return out

    counts_E = torch.tensor([0, 3, 0, 5, 0])
    block = ExpertBlock(slice(None), slice(None), counts_E)
    block.on_cpu = False
    rows_MA, rows_MB = torch.randn(8, 4), torch.randn(8, 8)
    out_EAB = torch.full((5, 4, 8), 7.0)
    monkeypatch.setattr(kernels.moe.grouped_matmul.F, "grouped_mm", unclean)
    block.outer(out_EAB, rows_MA, rows_MB)
    assert not out_EAB[[0, 2, 4]].any()
    torch.testing.assert_close(out_EAB[1], rows_MA[:3].t() @ rows_MB[:3])
    torch.testing.assert_close(out_EAB[3], rows_MA[3:].t() @ rows_MB[3:])


def test_bfloat16_rows_of_one_token_are_summed_in_float32():
    """256 rows of 1 each: in bfloat16 the sum would stop growing at 256 * (1 + rounding)."""
    num_rows = 1000
    y_TD = expert_ffn(
        torch.ones(1, 8, dtype=torch.bfloat16), torch.zeros(num_rows, dtype=torch.int64), torch.ones(num_rows),
        torch.tensor([num_rows]), None, torch.eye(8, dtype=torch.bfloat16)[None],
        torch.eye(8, dtype=torch.bfloat16)[None], "relu",
    )
    assert torch.equal(y_TD, torch.full((1, 8), 1000.0, dtype=torch.bfloat16))


def test_runs_are_repeated_bit_for_bit():
    arguments, dy_TD = inputs([300, 0, 200], "swiglu", torch.float32, num_tokens=64), torch.randn(64, 8)
    runs = [output_and_gradients(expert_ffn, arguments, dy_TD) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_nothing_of_model_width_is_kept_for_each_row():
    arguments = inputs([300, 200], "swiglu", torch.float32, num_tokens=64, d_model=32, d_expert=8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        expert_ffn(arguments[0].requires_grad_(), *arguments[1:])
    assert kept and max(kept) <= 500 * 8
