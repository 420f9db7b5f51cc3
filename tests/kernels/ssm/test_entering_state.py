"""A scan that a state enters is the scan from zero and the response to the state.

B batch, S sequence, H heads, G groups, P head width, I channels, N state.
"""

import pytest
import torch
from torch import Tensor

from kernels import selective_scan, ssd
from kernels.ssm.entering_state import selective_response, ssd_response


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_ssd(num_groups):
    x, dt, A, D = random(2, 9, 4, 3, seed=0), random(2, 9, 4, seed=1).exp(), -random(4, seed=2).exp(), random(4, seed=3)
    B, C = random(2, 9, num_groups, 5, seed=4), random(2, 9, num_groups, 5, seed=5)
    state = random(2, 4, 3, 5, seed=6)
    expected = ssd(x, dt, A, B, C, D, 4, None, state)[0] - ssd(x, dt, A, B, C, D, 4)[0]
    torch.testing.assert_close(ssd_response(dt.cumsum(1), A, C, state), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("chunk_size", [1, 4, 9, 64])
def test_selective(chunk_size):
    x, dt, A, D = random(2, 9, 6, seed=0), random(2, 9, 6, seed=1).exp(), -random(6, 5, seed=2).exp(), random(6, seed=3)
    B, C, state = random(2, 9, 5, seed=4), random(2, 9, 5, seed=5), random(2, 6, 5, seed=6)
    expected = selective_scan(x, dt, A, B, C, D, 4, None, state)[0] - selective_scan(x, dt, A, B, C, D, 4)[0]
    torch.testing.assert_close(selective_response(dt.cumsum(1), A, C, state, chunk_size), expected,
                               rtol=1e-12, atol=1e-13)


def test_the_gradient_of_the_selective_response():
    inputs = [random(2, 5, 3, seed=0).exp(), -random(3, 2, seed=1).exp(), random(2, 5, 2, seed=2),
              random(2, 3, 2, seed=3)]
    leaves = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(lambda *tensors: selective_response(*tensors, chunk_size=2), leaves)


def test_no_state_of_every_token_is_kept_for_the_backward():
    elapsed, A, C = random(1, 96, 4, seed=0).exp(), -random(4, 16, seed=1).exp(), random(1, 96, 16, seed=2)
    state, saved = random(1, 4, 16, seed=3).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):
        selective_response(elapsed, A, C, state, chunk_size=8).sum().backward()
    assert saved and max(saved) <= 96 * 16
