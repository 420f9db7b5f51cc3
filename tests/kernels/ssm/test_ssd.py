"""Mamba-2's chunked scan against the recurrence, token by token, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import ssd, ssd_step
from tests.helpers.kernels import check_kernel


def recurrence(x_BSHP, dt_BSH, A_H, B_BSGN, C_BSGN, D_H, state_BHPN, document_BS):
    """The definition: one token after another, B and C repeated for the heads of their group."""
    repeats = x_BSHP.shape[2] // B_BSGN.shape[2]
    B_BSHN, C_BSHN = B_BSGN.repeat_interleave(repeats, dim=2), C_BSGN.repeat_interleave(repeats, dim=2)
    outputs = []
    for t in range(x_BSHP.shape[1]):
        if t > 0:
            state_BHPN = state_BHPN * (document_BS[:, t] == document_BS[:, t - 1])[:, None, None, None]
        added_BHPN = torch.einsum("bh,bhp,bhn->bhpn", dt_BSH[:, t], x_BSHP[:, t], B_BSHN[:, t])
        state_BHPN = torch.exp(dt_BSH[:, t] * A_H)[:, :, None, None] * state_BHPN + added_BHPN
        outputs.append(torch.einsum("bhpn,bhn->bhp", state_BHPN, C_BSHN[:, t]) + D_H[:, None] * x_BSHP[:, t])
    return torch.stack(outputs, dim=1), state_BHPN


def draw(seed, batch_size=2, seq_len=37, num_heads=4, head_dim=3, groups=2, d_state=5, strength=1.0,
         dtype=torch.float64):
    """x, dt, A, B, C, D and an initial state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    inputs = [
        normal(batch_size, seq_len, num_heads, head_dim), normal(batch_size, seq_len, num_heads).abs(),
        -strength * normal(num_heads).abs(), normal(batch_size, seq_len, groups, d_state),
        normal(batch_size, seq_len, groups, d_state), normal(num_heads),
        normal(batch_size, num_heads, head_dim, d_state),
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
@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4]), st.booleans())
def test_equals_the_recurrence(seed, seq_len, chunk_size, groups, packed):
    *inputs, state_BHPN = draw(seed, seq_len=seq_len, groups=groups)
    document_BS = documents(seed, seq_len=seq_len, rate=0.15 if packed else 0.0)
    chunked = ssd(*inputs, chunk_size, document_BS if packed else None, state_BHPN)
    expected = recurrence(*inputs, state_BHPN, document_BS)
    arguments = [*inputs, state_BHPN]
    torch.testing.assert_close(
        with_gradients(chunked, arguments), with_gradients(expected, arguments), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("strength", [0.1, 1.0, 30.0, 1000.0])
def test_float32_keeps_its_digits_whatever_the_decay(strength):
    single = draw(1, seq_len=150, strength=strength, dtype=torch.float32)
    exact = [tensor.detach().double().requires_grad_() for tensor in single]
    document_BS = documents(1, seq_len=150, rate=0.03)
    found = with_gradients(ssd(*single[:-1], 64, document_BS, single[-1]), single)
    expected = with_gradients(recurrence(*exact, document_BS), exact)
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert (value - reference).norm() <= 1e-6 * reference.norm() + 1e-12


def test_a_sequence_cut_anywhere_is_the_whole():
    *inputs, _ = draw(2)
    whole_y, whole_state = ssd(*inputs, 16)
    x_BSHP, dt_BSH, A_H, B_BSGN, C_BSGN, D_H = inputs
    for cut in (1, 16, 20, 36):
        first, second = ((x_BSHP[:, part], dt_BSH[:, part], A_H, B_BSGN[:, part], C_BSGN[:, part], D_H)
                         for part in (slice(cut), slice(cut, None)))
        first_y, state_BHPN = ssd(*first, 16)
        second_y, state_BHPN = ssd(*second, 16, state_BHPN=state_BHPN)
        torch.testing.assert_close(torch.cat([first_y, second_y], dim=1), whole_y)
        torch.testing.assert_close(state_BHPN, whole_state)


def test_steps_equal_the_scan():
    x_BSHP, dt_BSH, A_H, B_BSGN, C_BSGN, D_H, state_BHPN = draw(3)
    expected_y, expected_state = ssd(x_BSHP, dt_BSH, A_H, B_BSGN, C_BSGN, D_H, state_BHPN=state_BHPN)
    for t in range(x_BSHP.shape[1]):
        y_BHP, state_BHPN = ssd_step(x_BSHP[:, t], dt_BSH[:, t], A_H, B_BSGN[:, t], C_BSGN[:, t], D_H, state_BHPN)
        torch.testing.assert_close(y_BHP, expected_y[:, t])
    torch.testing.assert_close(state_BHPN, expected_state)


def test_bfloat16_inputs_are_computed_in_float32():
    single = [tensor.detach().float() for tensor in draw(4)[:-1]]
    rounded = [tensor.bfloat16() if place in (0, 3, 4) else tensor for place, tensor in enumerate(single)]
    y_BSHP, state_BHPN = ssd(*rounded)
    expected_y, expected_state = ssd(*(tensor.float() for tensor in rounded))
    assert y_BSHP.dtype == torch.bfloat16 and state_BHPN.dtype == torch.float32
    torch.testing.assert_close(y_BSHP, expected_y.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(state_BHPN, expected_state, rtol=0, atol=0)


@pytest.mark.parametrize(("sizes", "groups", "strength", "dtype", "packed", "has_state"), [
    ((1, 2, 4, 4), 1, 1.0, torch.float32, False, False),
    ((37, 4, 5, 21), 2, 1.0, torch.float32, True, True),  # chunks, widths and states that are no multiple of a block
    # Of A's gradient, one number a head, terms nearly cancel in some heads: the more, the less one of them counts.
    ((70, 4, 8, 16), 1, 1.0, torch.bfloat16, True, True),
    ((70, 2, 8, 4), 1, 50.0, torch.bfloat16, False, True),  # states that are all but forgotten from token to token
    ((20, 2, 8, 4), 1, 50.0, torch.float32, True, False),
])
def test_triton_equals_float64(sizes, groups, strength, dtype, packed, has_state):
    seq_len, num_heads, head_dim, d_state = sizes
    *inputs, state_BHPN = draw(0, 2, seq_len, num_heads, head_dim, groups, d_state, strength)
    document_BS = documents(0, 2, seq_len) if packed else None

    def by(backend):
        return lambda *inputs: ssd(*inputs[:6], 16, document_BS, inputs[6], backend)

    arguments = [*inputs, state_BHPN if has_state else None]
    check_kernel(by("triton"), by("torch"), arguments, dtype, precise=[1, 2, 5, 6])


def test_triton_carries_the_state_or_writes_it_alike(monkeypatch):
    *inputs, state_BHPN = (tensor.detach().float() for tensor in draw(1))
    results = []
    for programs in (1, 10**9):
        monkeypatch.setattr("kernels.ssm.ssd_operators.CARRIED_PROGRAMS", programs)
        results.append(ssd(*inputs, state_BHPN=state_BHPN, backend="triton"))
    for carried, written in zip(*results, strict=True):
        torch.testing.assert_close(carried, written, rtol=1e-5, atol=1e-5)
