"""Mamba-1's chunked scan against the recurrence, token by token, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import selective_scan, selective_step
from tests.helpers.kernels import check_kernel


def recurrence(x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, state_BIN, document_BS):
    """The definition: one token after another."""
    outputs = []
    for t in range(x_BSI.shape[1]):
        if t > 0:
            state_BIN = state_BIN * (document_BS[:, t] == document_BS[:, t - 1])[:, None, None]
        decay_BIN = torch.exp(dt_BSI[:, t, :, None] * A_IN)
        state_BIN = decay_BIN * state_BIN + (dt_BSI[:, t] * x_BSI[:, t])[:, :, None] * B_BSN[:, t, None, :]
        outputs.append((state_BIN * C_BSN[:, t, None, :]).sum(-1) + D_I * x_BSI[:, t])
    return torch.stack(outputs, dim=1), state_BIN


def draw(seed, batch_size=2, seq_len=37, width=3, d_state=5, strength=1.0, dtype=torch.float64):
    """x, dt, A, B, C, D and an initial state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    inputs = [
        normal(batch_size, seq_len, width), normal(batch_size, seq_len, width).abs(),
        -strength * normal(width, d_state).abs(), normal(batch_size, seq_len, d_state),
        normal(batch_size, seq_len, d_state), normal(width), normal(batch_size, width, d_state),
    ]
    return [tensor.requires_grad_() for tensor in inputs]


def documents(seed, batch_size=2, seq_len=37, rate=0.15):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch_size, seq_len, generator=generator) < rate).long().cumsum(1)


def with_gradients(outputs, inputs):
    """The outputs, and the gradients of all inputs under fixed upstream gradients."""
    upstream = [torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape) for output in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, upstream)]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_equals_the_recurrence(seed, seq_len, chunk_size, packed):
    *inputs, state_BIN = draw(seed, seq_len=seq_len)
    document_BS = documents(seed, seq_len=seq_len, rate=0.15 if packed else 0.0)
    chunked = selective_scan(*inputs, chunk_size, document_BS if packed else None, state_BIN)
    expected = recurrence(*inputs, state_BIN, document_BS)
    arguments = [*inputs, state_BIN]
    torch.testing.assert_close(
        with_gradients(chunked, arguments), with_gradients(expected, arguments), rtol=1e-11, atol=1e-11
    )


def test_gradients_equal_finite_differences():
    *inputs, state_BIN = draw(0, batch_size=1, seq_len=10, width=2, d_state=2)
    document_BS = torch.tensor([[0] * 7 + [1] * 3])
    torch.autograd.gradcheck(
        lambda *args: selective_scan(*args[:-1], 8, document_BS, args[-1]), (*inputs, state_BIN), fast_mode=True
    )


@pytest.mark.parametrize("strength", [0.1, 1.0, 30.0, 1000.0])
def test_float32_keeps_its_digits_whatever_the_decay(strength):
    single = draw(1, seq_len=150, strength=strength, dtype=torch.float32)
    exact = [tensor.detach().double().requires_grad_() for tensor in single]
    document_BS = documents(1, seq_len=150, rate=0.03)
    found = with_gradients(selective_scan(*single[:-1], 64, document_BS, single[-1]), single)
    expected = with_gradients(recurrence(*exact, document_BS), exact)
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert (value - reference).norm() <= 1e-6 * reference.norm() + 1e-12


def test_a_sequence_cut_anywhere_is_the_whole():
    *inputs, _ = draw(2)
    whole_y, whole_state = selective_scan(*inputs)
    x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I = inputs
    for cut in (1, 8, 20, 36):
        first, second = ((x_BSI[:, part], dt_BSI[:, part], A_IN, B_BSN[:, part], C_BSN[:, part], D_I)
                         for part in (slice(cut), slice(cut, None)))
        first_y, state_BIN = selective_scan(*first)
        second_y, state_BIN = selective_scan(*second, state_BIN=state_BIN)
        torch.testing.assert_close(torch.cat([first_y, second_y], dim=1), whole_y)
        torch.testing.assert_close(state_BIN, whole_state)


def test_steps_equal_the_scan():
    x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, state_BIN = draw(3)
    expected_y, expected_state = selective_scan(x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, state_BIN=state_BIN)
    for t in range(x_BSI.shape[1]):
        y_BI, state_BIN = selective_step(x_BSI[:, t], dt_BSI[:, t], A_IN, B_BSN[:, t], C_BSN[:, t], D_I, state_BIN)
        torch.testing.assert_close(y_BI, expected_y[:, t])
    torch.testing.assert_close(state_BIN, expected_state)


def test_bfloat16_inputs_are_computed_in_float32():
    single = [tensor.detach().float() for tensor in draw(4)[:-1]]
    rounded = [tensor.bfloat16() if place in (0, 3, 4) else tensor for place, tensor in enumerate(single)]
    rounded = [tensor.requires_grad_() for tensor in rounded]
    y_BSI, state_BIN = selective_scan(*rounded)
    expected_y, expected_state = selective_scan(*(tensor.float() for tensor in rounded))
    assert y_BSI.dtype == torch.bfloat16 and state_BIN.dtype == torch.float32
    torch.testing.assert_close(y_BSI, expected_y.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(state_BIN, expected_state, rtol=0, atol=0)
    gradients = torch.autograd.grad(y_BSI.float().sum(), rounded)
    assert [gradient.dtype for gradient in gradients] == [tensor.dtype for tensor in rounded]
    torch.testing.assert_close(gradients, torch.autograd.grad(expected_y.sum(), rounded), rtol=1e-2, atol=1e-2)


def test_no_state_of_a_token_is_kept_for_the_backward():
    *inputs, _ = draw(5, seq_len=256, width=16, d_state=16, dtype=torch.float32)
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selective_scan(*inputs, chunk_size=64)
    all_states = 4 * 2 * 256 * 16 * 16
    assert sum(storages.values()) < all_states / 2


def check_triton(sizes, strength, dtype, document_BS, has_state):
    """Triton's scan, in the interpreter where there is no GPU, against PyTorch's in float64."""
    (seq_len, num_channels, d_state), generator = sizes, torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    arguments = [
        normal(2, seq_len, num_channels), normal(2, seq_len, num_channels).abs(),
        -strength * normal(num_channels, d_state).abs(), normal(2, seq_len, d_state), normal(2, seq_len, d_state),
        normal(num_channels), normal(2, num_channels, d_state) if has_state else None,
    ]

    def by(backend):
        return lambda *inputs: selective_scan(
            *inputs[:6], document_BS=document_BS, state_BIN=inputs[6], backend=backend)

    check_kernel(by("triton"), by("torch"), arguments, dtype, precise=[1, 2, 5, 6])


@pytest.mark.parametrize(("sizes", "strength", "dtype", "packed", "has_state"), [
    ((1, 4, 4), 1.0, torch.float32, False, False),
    ((16, 8, 4), 1.0, torch.float32, True, False),  # whole runs, and blocks of all channels and states
    ((19, 11, 5), 1.0, torch.float32, True, True),  # runs, channels and states that are no multiple of a block
    ((17, 8, 4), 1.0, torch.bfloat16, True, True),
    ((10, 8, 2), 50.0, torch.float32, False, True),  # states that are all but forgotten from token to token
    ((9, 5, 12), 1.0, torch.float32, True, True),  # fewer channels than sums that threads exchange
    ((9, 3, 40), 1.0, torch.float32, False, True),  # a channel's states are all that a program holds
])
def test_triton_equals_float64(sizes, strength, dtype, packed, has_state):
    check_triton(sizes, strength, dtype, documents(0, seq_len=sizes[0], rate=0.2) if packed else None, has_state)


@pytest.mark.parametrize("seq_len", [16, 21])
def test_triton_starts_documents_where_tiles_and_runs_start(seq_len):
    first_tokens = torch.tensor([[2, 4, 8], [1, 7, 15]])
    document_BS = (torch.arange(seq_len)[:, None] >= first_tokens[:, None]).sum(-1)
    check_triton((seq_len, 4, 4), 1.0, torch.float32, document_BS, True)
