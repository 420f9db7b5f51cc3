"""`linear_cross_entropy` against PyTorch's cross entropy of whole logits, in float64.

T tokens, D model width, V vocabulary.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import cross_entropy, linear_cross_entropy

TOLERANCE = {torch.float64: 2e-15, torch.float32: 1e-6, torch.bfloat16: 1e-2}


def inputs(num_tokens=13, d_model=6, vocab_size=50, ignored=(), x_dtype=torch.float64, weight_dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(num_tokens, d_model, generator=generator, dtype=torch.float64).to(x_dtype)
    weight_VD = torch.randn(vocab_size, d_model, generator=generator, dtype=torch.float64).to(weight_dtype)
    targets_T = torch.randint(vocab_size, (num_tokens,), generator=generator)
    targets_T[list(ignored)] = -100
    return x_TD.requires_grad_(), weight_VD.requires_grad_(), targets_T


def whole(x_TD, weight_VD, targets_T, scale):
    return F.cross_entropy(scale * x_TD @ weight_VD.t(), targets_T, reduction="sum")


def check(x_TD, weight_VD, targets_T, scale, tolerance):
    loss = linear_cross_entropy(x_TD, weight_VD, targets_T, scale)
    gradients = torch.autograd.grad(loss * 0.3, (x_TD, weight_VD))
    wide = [tensor.detach().double().requires_grad_() for tensor in (x_TD, weight_VD)]
    reference = whole(*wide, targets_T, scale)
    expected = torch.autograd.grad(reference * 0.3, wide)
    assert abs(loss.item() - reference.item()) <= tolerance * abs(reference.item())
    for gradient, other in zip(gradients, expected, strict=True):
        assert (gradient - other).norm() <= tolerance * other.norm()
    return loss, gradients


@pytest.mark.parametrize("chunk_logits", [1, 200, 2**21])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_whole_logits(dtype, chunk_logits, monkeypatch):
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", chunk_logits)
    loss, (dx_TD, dweight_VD) = check(*inputs(ignored=[0, 7], x_dtype=dtype, weight_dtype=dtype), 0.7, TOLERANCE[dtype])
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert dx_TD.dtype == dweight_VD.dtype == dtype
    assert not dx_TD[[0, 7]].any()


def test_the_gradient_of_a_float32_weight_is_summed_in_float32():
    _, (dx_TD, dweight_VD) = check(*inputs(x_dtype=torch.bfloat16, weight_dtype=torch.float32), 1.0, 1e-2)
    assert (dx_TD.dtype, dweight_VD.dtype) == (torch.bfloat16, torch.float32)


@settings(max_examples=25, deadline=None)
@given(num_tokens=st.integers(1, 9), vocab_size=st.integers(1, 20), scale=st.floats(0.1, 30.0), data=st.data())
def test_equals_whole_logits_whatever_is_left_out(num_tokens, vocab_size, scale, data):
    ignored = data.draw(st.sets(st.integers(0, num_tokens - 1), max_size=num_tokens - 1))
    x_TD, weight_VD, targets_T = inputs(num_tokens, 3, vocab_size, ignored)
    loss = linear_cross_entropy(x_TD, weight_VD, targets_T, scale)
    torch.testing.assert_close(loss, whole(x_TD, weight_VD, targets_T, scale), rtol=1e-12, atol=1e-12)


def test_all_left_out_gives_zero_and_zero_gradients():
    x_TD, weight_VD, targets_T = inputs(ignored=range(13))
    loss = linear_cross_entropy(x_TD, weight_VD, targets_T)
    loss.backward()
    assert loss.item() == 0 and not x_TD.grad.any() and not weight_VD.grad.any()


def test_improbable_targets_keep_a_finite_loss():
    """Probability e^-2000 underflows; its logarithm is taken before that."""
    x_TD, weight_VD = torch.tensor([[1.0]]), torch.tensor([[1000.0], [-1000.0]])
    assert linear_cross_entropy(x_TD, weight_VD, torch.tensor([1])).item() == 2000.0


def test_nothing_of_vocabulary_width_is_kept_for_each_token():
    x_TD, weight_VD, targets_T = inputs(num_tokens=40, vocab_size=50)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
        linear_cross_entropy(x_TD, weight_VD, targets_T)
    assert kept == [(40, 6), (50, 6)]


def test_a_mean_over_tokens_scales_bfloat16_gradients_in_float32():
    """1 / 8170 lies between numbers of bfloat16 that are 0.12 % and 0.27 % away."""
    x_TD, weight_VD, targets_T = inputs(x_dtype=torch.bfloat16, weight_dtype=torch.bfloat16)
    of_sum, of_mean = (torch.autograd.grad(linear_cross_entropy(x_TD, weight_VD, targets_T) / num, (x_TD, weight_VD))
                       for num in (1, 8170))
    for whole_gradient, part in zip(of_sum, of_mean, strict=True):
        scale = torch.tensor(1 / 8170)
        assert torch.equal(part, (whole_gradient.float() * scale).bfloat16())
        assert not torch.equal(part, whole_gradient * scale.bfloat16())


def test_without_gradients_none_are_computed():
    x_TD, weight_VD, targets_T = inputs()
    with torch.no_grad():
        loss = linear_cross_entropy(x_TD, weight_VD, targets_T)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, whole(x_TD, weight_VD, targets_T, 1.0).detach())
