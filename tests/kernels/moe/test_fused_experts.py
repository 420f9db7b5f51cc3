"""The experts in Triton: against float64, what they keep, and that no host waits for them.

T tokens, D model width, E experts, F width of an expert, M rows, K choices per token.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from framework.model.moe.assignment import assign_choices
from kernels.backend import use_backend
from kernels.language import triton
from kernels.moe import fused_experts
from kernels.moe.experts import expert_ffn
from kernels.operator import opened
from tests.helpers.kernels import BACKWARD, FORWARD, check_kernel, relative_error, results


def matrices(num_experts, d_model, d_expert, activation, generator):
    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) / shape[2] ** 0.5

    gate_EFD = normal(num_experts, d_expert, d_model) if activation == "swiglu" else None
    return gate_EFD, normal(num_experts, d_expert, d_model), normal(num_experts, d_model, d_expert)


def inputs(counts, num_tokens, d_model, d_expert, activation, seed=0):
    """Rows of random tokens: x, token_M, gate_M, counts_E and the matrices."""
    generator = torch.Generator().manual_seed(seed)
    token_M = torch.randint(num_tokens, (sum(counts),), generator=generator)
    x_TD = torch.randn(num_tokens, d_model, generator=generator, dtype=torch.float64)
    gate_M = torch.rand(sum(counts), generator=generator, dtype=torch.float64) + 0.1
    return [x_TD, token_M, gate_M, torch.tensor(counts),
            *matrices(len(counts), d_model, d_expert, activation, generator)]


def by(backend, activation):
    return lambda *arguments: expert_ffn(*arguments, activation, backend=backend)


def check(arguments, activation, dtype):
    check_kernel(by("triton", activation), by("torch", activation), arguments, dtype, precise=[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation, counts, num_tokens, d_model, d_expert", [
    ("swiglu", [40, 0, 17, 1, 0], 20, 72, 40),  # empty experts, five of them, and blocks that are not full
    ("gelu", [0, 0, 35], 9, 33, 72),  # all rows to one expert
    ("relu", [1], 1, 8, 8),  # one token
    ("relu2", [3, 20], 30, 64, 128),  # tokens without rows, and blocks that are full
    ("swiglu", [0, 0], 4, 16, 8),  # no rows
])
def test_equals_float64(activation, counts, num_tokens, d_model, d_expert, dtype):
    check(inputs(counts, num_tokens, d_model, d_expert, activation), activation, dtype)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_frozen_experts_pay_for_no_gradients_of_matrices(backend, monkeypatch):
    """The gradients of x and gates are the same bits, and no outer product is taken."""
    arguments = inputs([5, 0, 9], 6, 16, 8, "swiglu")
    x_TD, token_M, gate_M, counts_E, *weights = (
        tensor.float() if tensor.is_floating_point() else tensor for tensor in arguments)
    x_TD, gate_M = x_TD.requires_grad_(), gate_M.requires_grad_()

    def gradients(*matrices):
        y_TD = expert_ffn(x_TD, token_M, gate_M, counts_E, *matrices, "swiglu", backend=backend)
        return torch.autograd.grad(y_TD.square().sum(), (x_TD, gate_M))

    expected = gradients(*(weight.clone().requires_grad_() for weight in weights))
    monkeypatch.setattr("kernels.moe.fused_experts._outer", None)
    monkeypatch.setattr("kernels.moe.grouped_matmul.ExpertBlock.outer", None)
    assert all(map(torch.equal, gradients(*weights), expected))
    with pytest.raises(TypeError):
        gradients(weights[0], weights[1].clone().requires_grad_(), weights[2])


def test_without_gradients_the_layers_are_not_written(monkeypatch):
    """What a backward would need: two layers of width F, written by the largest kernel."""
    arguments = [tensor.float() if tensor.is_floating_point() else tensor
                 for tensor in inputs([5, 9], 6, 16, 8, "swiglu")]
    made = []
    forward = fused_experts._forward
    monkeypatch.setattr(fused_experts, "_forward", lambda *given: made.append(forward(*given)) or made[-1])
    arguments[0].requires_grad_()
    kept = by("triton", "swiglu")(*arguments)
    with torch.no_grad():
        free = by("triton", "swiglu")(*arguments)
    assert torch.equal(kept, free)
    assert [result[1].shape for result in made] == [(2, 14, 8), (2, 0, 8)]


@settings(max_examples=3, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=4), num_tokens=st.integers(1, 9),
       activation=st.sampled_from(["swiglu", "gelu", "relu", "relu2"]),
       widths=st.tuples(st.integers(1, 70), st.integers(1, 70)), seed=st.integers(0, 99))
def test_any_rows(counts, num_tokens, activation, widths, seed):
    check(inputs(counts, num_tokens, *widths, activation, seed), activation, torch.float32)


def routed(x_TD, gate_TK, *weights, index_TK, backend, activation="swiglu"):
    """A dropless layer from choices on: an assignment, and the experts."""
    with use_backend(backend):
        assignment = assign_choices(index_TK[None], gate_TK[None], len(weights[-1]))
        return expert_ffn(x_TD, assignment.token_M, assignment.gate_M, assignment.counts_E, *weights, activation,
                          assignment.rows)


@pytest.mark.parametrize("num_tokens, num_experts, top_k, dtype", [
    (40, 5, 1, torch.bfloat16), (3, 5, 32, torch.float32),
])
def test_routed_tokens_equal_float64(num_tokens, num_experts, top_k, dtype):
    generator = torch.Generator().manual_seed(0)
    index_TK = torch.randint(num_experts, (num_tokens, top_k), generator=generator)  # an expert many times too
    arguments = [torch.randn(num_tokens, 24, generator=generator, dtype=torch.float64),
                 torch.rand(num_tokens, top_k, generator=generator, dtype=torch.float64),
                 *matrices(num_experts, 24, 16, "swiglu", generator)]

    def run(backend):
        return lambda *arguments: routed(*arguments, index_TK=index_TK, backend=backend)

    check_kernel(run("triton"), run("torch"), arguments, dtype, precise=[1])


def test_equals_permuting_and_grouped_mm():
    """What others do: a permuted copy of the tokens, PyTorch's grouped product, and the gates at the end."""
    arguments = inputs([20, 0, 35, 9], 24, 32, 16, "swiglu")
    arguments = [argument.float() if argument.is_floating_point() else argument for argument in arguments]

    def permuted(x_TD, token_M, gate_M, counts_E, gate_EFD, up_EFD, down_EDF):
        x_MD, ends_E = x_TD[token_M], counts_E.cumsum(0, dtype=torch.int32)
        gated_MF, up_MF = (F.grouped_mm(x_MD, matrix.transpose(1, 2), offs=ends_E) for matrix in (gate_EFD, up_EFD))
        y_MD = F.grouped_mm(F.silu(gated_MF) * up_MF, down_EDF.transpose(1, 2), offs=ends_E)
        return torch.zeros_like(x_TD).index_add(0, token_M, y_MD * gate_M[:, None])

    got, expected = (results(function, arguments) for function in (by("triton", "swiglu"), permuted))
    for kind, limits in (("output", FORWARD), ("gradient", BACKWARD)):
        for place, value in got[kind].items():
            assert relative_error(value, expected[kind][place]) <= limits[torch.float32]


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("activation, dtype", [
    ("swiglu", torch.float32), ("relu", torch.bfloat16),
])
def test_weight_gradients_are_added_to_float32_buffers(activation, dtype, backend):
    x_TD, token_M, gate_M, counts_E, *weights = inputs([5, 0, 40], 12, 40, 33, activation)
    x_TD, gate_M = x_TD.to(dtype), gate_M.float()
    weights = [None if weight is None else weight.to(dtype).requires_grad_() for weight in weights]
    before = [None if weight is None else torch.randn(weight.shape) for weight in weights]
    buffers = tuple(None if buffer is None else buffer.clone() for buffer in before)
    arguments = x_TD, token_M, gate_M, counts_E, *weights, activation
    dy_TD = torch.randn(x_TD.shape).to(dtype)
    expert_ffn(*arguments, weight_gradients=buffers, backend=backend).backward(dy_TD)
    assert all(weight is None or weight.grad is None for weight in weights)
    exact = [argument.double() if torch.is_tensor(argument) and argument.is_floating_point() else argument
             for argument in arguments[:4]]
    exact += [None if weight is None else weight.detach().double().requires_grad_() for weight in weights]
    expert_ffn(*exact, activation).backward(dy_TD.double())
    for buffer, start, weight in zip(buffers, before, exact[4:], strict=True):
        if weight is not None:
            assert buffer.dtype == torch.float32 and torch.equal(buffer[1], start[1])
            assert relative_error(buffer - start, weight.grad) <= BACKWARD[dtype]


def test_rows_after_those_that_count_are_left_alone():
    """Whatever their tokens and gates are."""
    x_TD, token_M, gate_M, counts_E, *weights = inputs([5, 0, 40], 12, 16, 8, "swiglu")
    token_M = torch.cat([token_M, torch.tensor([10 ** 6, -7])])
    longer = [x_TD, token_M, torch.cat([gate_M, torch.full((2,), torch.nan)]), counts_E, *weights]
    rounded = [argument.float() if argument.is_floating_point() else argument for argument in longer]
    shorter = [argument[:45] if place in (1, 2) else argument for place, argument in enumerate(rounded)]
    got, expected = (results(by("triton", "swiglu"), arguments) for arguments in (rounded, shorter))
    assert torch.equal(got["output"][0], expected["output"][0])
    for place, gradient in expected["gradient"].items():
        assert torch.equal(got["gradient"][place][:45], gradient)


class NoWaiting(TorchDispatchMode):
    """Fails where a GPU's host would wait for a number."""

    WAIT = ("_local_scalar_dense", "nonzero", "bincount", "unique", "masked_select", "equal", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name.strip("_").removesuffix("_static") not in [wait.strip("_") for wait in self.WAIT], name
        assert name != "repeat_interleave" or (kwargs or {}).get("output_size") is not None
        return function(*args, **(kwargs or {}))


@pytest.fixture
def launched(monkeypatch):
    """The names of kernels, which do not run."""
    names = []
    monkeypatch.setattr(triton.runtime.jit.KernelInterface, "__getitem__",
                        lambda self, grid: lambda *args, **kwargs: names.append(self.fn.__name__))
    return names


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)


SHAPES = {  # kernels.md B2: T, D, F, E, K
    "A": (16384, 2048, 1024, 64, 8), "B": (24576, 1536, 256, 128, 8), "C": (32768, 4096, 256, 256, 16),
    "D": (16384, 2048, 128, 512, 32), "E": (16384, 1024, 128, 256, 8),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_keeps_what_the_design_says_and_no_host_waits(shape, launched):
    """Bytes of tokens, layers, gates and indices; the matrices are kept anyway.

    On meta tensors, which have no data to wait for, through everything but the kernels.
    """
    num_tokens, d_model, d_expert, num_experts, top_k = SHAPES[shape]
    num_rows = num_tokens * top_k
    x_TD, gate_TK = meta(num_tokens, d_model), meta(num_tokens, top_k, dtype=torch.float32)
    weights = [meta(num_experts, *size) for size in 2 * [(d_expert, d_model)] + [(d_model, d_expert)]]
    kept = {}

    def keep(tensor):
        if tensor.shape not in [weight.shape for weight in weights]:
            kept[id(tensor.untyped_storage())] = tensor.numel() * tensor.element_size()
        return tensor

    with opened(), NoWaiting(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        index_TK = meta(num_tokens, top_k, dtype=torch.int64)
        y_TD = routed(x_TD, gate_TK, *weights, index_TK=index_TK, backend="triton")
        y_TD.backward(torch.empty_like(y_TD))
    designed = 2 * num_tokens * d_model + 4 * num_rows * d_expert + 12 * num_rows
    assert abs(sum(kept.values()) - designed) <= 0.05 * designed
    assert launched == ["count_experts", "add_up_blocks", "add_up_experts", "place_rows", "cut_tiles", "up_rows",
                        "multiply_rows", "add_rows", "hidden_backward", "outer_products", "multiply_rows", "add_rows",
                        "outer_products"]
    assert gate_TK.grad.shape == gate_TK.shape and weights[0].grad.shape == weights[0].shape


def test_compiles_as_one_graph():
    arguments = [argument.float() if argument.is_floating_point() else argument
                 for argument in inputs([5, 0, 20], 6, 16, 8, "swiglu")]
    eager, whole = (results(function, arguments) for function in (
        by("triton", "swiglu"), torch.compile(by("triton", "swiglu"), fullgraph=True, backend="aot_eager")))
    assert torch.equal(eager["output"][0], whole["output"][0])
    assert all(torch.equal(gradient, whole["gradient"][place]) for place, gradient in eager["gradient"].items())
