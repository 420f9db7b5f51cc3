"""Masks, grouping and rotary tables against formulas spelled out in float64."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.model.attention import attend
from framework.model.rope import cosine_and_sine, frequencies
from framework.recipe.schema import Attention, RopeScaling
from kernels import rotate_halves


def softmax_attention(q, k, v, scale, window, document_BS):
    """One query, one head, one key at a time."""
    y = torch.zeros_like(q)
    num_queries, num_keys, per_group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for s in range(num_queries):
            place = num_keys - num_queries + s
            seen = [
                other for other in range(place + 1)
                if (window is None or place - other < window)
                and (document_BS is None or document_BS[b, other] == document_BS[b, place])
            ]
            for h in range(q.shape[2]):
                weights = torch.stack([scale * q[b, s, h] @ k[b, other, h // per_group] for other in seen]).softmax(0)
                y[b, s, h] = weights @ v[b, seen, h // per_group]
    return y


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 7), st.integers(0, 5), st.integers(1, 2), st.integers(1, 3), st.none() | st.integers(1, 9),
    st.booleans(), st.sampled_from([0.25, 1.0]),
)
def test_attend(num_queries, num_cached, num_groups, per_group, window, documents, scale):
    torch.manual_seed(num_queries + 10 * num_cached)
    num_keys = num_queries + num_cached
    q = torch.randn(2, num_queries, num_groups * per_group, 4, dtype=torch.float64)
    k, v = torch.randn(2, 2, num_keys, num_groups, 4, dtype=torch.float64)
    document_BS = torch.randint(0, 2, (2, num_keys)).cumsum(1) if documents else None
    actual = attend(q, k, v, scale, window, document_BS)
    expected = softmax_attention(q, k, v, scale, window, document_BS)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_rotation_is_a_complex_product():
    attention = Attention(head_dim=8, rope_fraction=0.75, rope_base=100.0)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    position_BS = torch.tensor([[0, 1, 2, 3, 4], [7, 0, 1, 2000, 3]])
    angle = position_BS[:, :, None, None] * torch.tensor([100.0 ** (-n / 3) for n in range(3)], dtype=torch.float64)
    turned = torch.complex(x[..., :3], x[..., 3:6]) * torch.polar(torch.ones_like(angle), angle)
    expected = torch.cat((turned.real, turned.imag, x[..., 6:]), dim=-1)
    frequency_N = frequencies(attention, x.device)
    actual = rotate_halves(x, *cosine_and_sine(position_BS, frequency_N, x.dtype))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert {each.dtype for each in cosine_and_sine(position_BS, frequency_N, torch.bfloat16)} == {torch.float32}


def test_llama3_scaling_keeps_fast_and_slows_slow_frequencies():
    plain = Attention(head_dim=64)
    scaled = Attention(head_dim=64, rope_scaling=RopeScaling(factor=8.0, original_seq_len=1024))
    before, after = (frequencies(each, torch.device("cpu")) for each in (plain, scaled))
    turns = 1024 * before / (2 * math.pi)
    assert torch.equal(after[turns > 4], before[turns > 4]) and (turns > 4).any()
    torch.testing.assert_close(after[turns < 1], before[turns < 1] / 8, rtol=1e-12, atol=0)
    between = (turns > 1) & (turns < 4)
    assert between.any() and ((after < before) & (after > before / 8))[between].all()
