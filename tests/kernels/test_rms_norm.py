"""`rms_norm` against its formula and PyTorch's gradient of it, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import rms_norm


def formula(x, weight_W, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight_W


def results(function, x, weight_W, eps, dtype):
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (x, weight_W)]
    y = function(*leaves, eps)
    return [y, *torch.autograd.grad(y, leaves, torch.sin(torch.arange(y.numel()).to(dtype)).view_as(y))]


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4), eps=st.sampled_from([1e-12, 1e-5, 0.5]))
def test_equals_the_formula_in_float64(shape, eps):
    generator = torch.Generator().manual_seed(0)
    x, weight_W = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (shape, shape[-1:]))
    for got, expected in zip(results(rms_norm, x, weight_W, eps, torch.float64),
                             results(formula, x, weight_W, eps, torch.float64), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("strided", [False, True])
def test_float32_stays_near_float64_over_many_rows(strided):
    torch.manual_seed(0)
    x = torch.randn(64, 4096, dtype=torch.float64).t() if strided else torch.randn(4096, 64, dtype=torch.float64)
    weight_W = torch.randn(64, dtype=torch.float64)
    got = results(rms_norm, x, weight_W, 1e-5, torch.float32)
    expected = results(formula, x, weight_W, 1e-5, torch.float64)
    # The weight's gradient is a sum over all rows, which some libraries add up one after another.
    for tolerance, mine, reference in zip((1e-6, 1e-6, 5e-6), got, expected, strict=True):
        assert (mine - reference).norm() < tolerance * reference.norm()
