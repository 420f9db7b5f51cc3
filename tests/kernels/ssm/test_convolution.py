"""The causal convolution against torch's own, document by document; Triton's body against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import causal_convolution
from tests.helpers.kernels import check_kernel


def torch_convolution(x_BSC, weight_CK, bias_C):
    """SiLU of torch's depthwise convolution, padded on the left."""
    padded_BCS = F.pad(x_BSC.mT, (weight_CK.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded_BCS, weight_CK[:, None], bias_C, groups=weight_CK.shape[0])).mT


def draw(seed, batch_size=2, seq_len=11, num_channels=3, num_taps=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch_size, seq_len, num_channels), (num_channels, num_taps), (num_channels,)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 5))
def test_equals_torch_on_each_document(seed, lengths, num_taps):
    inputs = draw(seed, seq_len=sum(lengths), num_taps=num_taps)
    document_BS = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).expand(2, -1)
    packed, _ = causal_convolution(*inputs, document_BS)
    apart = torch.cat([torch_convolution(x_BSC, *inputs[1:]) for x_BSC in inputs[0].split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, apart, rtol=0, atol=1e-14)
    upstream = torch.randn_like(packed)
    gradients = torch.autograd.grad(packed, inputs, upstream), torch.autograd.grad(apart, inputs, upstream)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-13)


@pytest.mark.parametrize("cut", [1, 2, 5, 10])
def test_a_tail_continues_the_sequence(cut):
    x_BSC, weight_CK, bias_C = draw(0)
    whole, tail = causal_convolution(x_BSC, weight_CK, bias_C)
    first, first_tail = causal_convolution(x_BSC[:, :cut], weight_CK, bias_C)
    second, second_tail = causal_convolution(x_BSC[:, cut:], weight_CK, bias_C, tail_BKC=first_tail)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(second_tail, tail, rtol=0, atol=0)


def test_a_tail_ends_with_the_first_tokens_document():
    x_BSC, weight_CK, bias_C = draw(1)
    document_BS = torch.tensor([[0] * 6 + [1] * 5, [0] * 11])
    whole, _ = causal_convolution(x_BSC, weight_CK, bias_C, document_BS)
    _, tail = causal_convolution(x_BSC[:, :5], weight_CK, bias_C)
    continued, _ = causal_convolution(x_BSC[:, 5:], weight_CK, bias_C, document_BS[:, 5:], tail)
    torch.testing.assert_close(continued, whole[:, 5:], rtol=0, atol=1e-14)


def test_bfloat16_is_computed_in_float32():
    inputs = draw(2, dtype=torch.float32)
    x_BSC = inputs[0].bfloat16()
    y_BSC, tail = causal_convolution(x_BSC, *inputs[1:])
    expected, _ = causal_convolution(x_BSC.float(), *inputs[1:])
    assert y_BSC.dtype == tail.dtype == torch.bfloat16
    torch.testing.assert_close(y_BSC, expected.bfloat16(), rtol=0, atol=0)


def check(seed, seq_len, num_channels, num_taps, dtype, packed, has_tail):
    generator = torch.Generator().manual_seed(seed)
    x_BSC, weight_CK, bias_C = draw(seed, 2, seq_len, num_channels, num_taps)
    tail_BKC = torch.randn(2, num_taps - 1, num_channels, generator=generator, dtype=torch.float64)
    document_BS = (torch.rand(2, seq_len, generator=generator) < 0.2).long().cumsum(1) if packed else None

    def by(backend):
        return lambda x_BSC, weight_CK, bias_C, tail_BKC: causal_convolution(
            x_BSC, weight_CK, bias_C, document_BS, tail_BKC, backend)

    arguments = [x_BSC, weight_CK, bias_C, tail_BKC if has_tail else None]
    check_kernel(by("triton"), by("torch"), arguments, dtype, precise=[1, 2])


@pytest.mark.parametrize(("sizes", "dtype", "packed", "has_tail"), [
    ((1, 5, 4), torch.float32, False, False),
    ((2, 5, 4), torch.float32, True, True),  # shorter than the tail
    ((19, 260, 4), torch.bfloat16, True, True),  # runs of tokens and blocks of channels, both with an end
    ((17, 9, 3), torch.float32, True, False),
    ((16, 8, 1), torch.float32, False, False),
    ((9, 8, 2), torch.bfloat16, False, True),
])
def test_triton_equals_float64(sizes, dtype, packed, has_tail):
    check(0, *sizes, dtype, packed, has_tail)


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 99), st.integers(1, 20), st.integers(1, 12), st.integers(1, 4), st.booleans(), st.booleans())
def test_triton_at_any_sizes(seed, seq_len, num_channels, num_taps, packed, has_tail):
    check(seed, seq_len, num_channels, num_taps, torch.float32, packed, has_tail)


def test_triton_reads_a_part_of_wider_rows():
    wide_BSC, weight_CK, bias_C = (tensor.detach().float() for tensor in draw(3, num_channels=12))
    part_BSC = wide_BSC[..., 4:9]
    expected, _ = causal_convolution(part_BSC, weight_CK[4:9], bias_C[4:9])
    got, _ = causal_convolution(part_BSC, weight_CK[4:9], bias_C[4:9], backend="triton")
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_longer_filters_are_pytorchs():
    inputs = draw(4, num_taps=5, dtype=torch.float32)
    expected, _ = causal_convolution(*inputs, backend="torch")
    torch.testing.assert_close(causal_convolution(*inputs, backend="triton")[0], expected, rtol=0, atol=0)
