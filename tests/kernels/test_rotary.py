"""`rotate_halves` against multiplication by complex numbers of modulus one, and Triton's body against PyTorch's."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import rotate_halves
from tests.helpers.kernels import check_kernel


@settings(max_examples=30, deadline=None)
@given(num_pairs=st.integers(0, 4), unrotated=st.integers(0, 3), per_sequence=st.booleans(), heads_first=st.booleans())
def test_equals_complex_multiplication(num_pairs, unrotated, per_sequence, heads_first):
    torch.manual_seed(num_pairs)
    shape = (2, 3, 5, 2 * num_pairs + unrotated)
    x_BSHP = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    angle_BS1N = torch.randn(2 if per_sequence else 1, 3, 1, num_pairs, dtype=torch.float64)
    given_BSHP = x_BSHP.transpose(1, 2).contiguous().transpose(1, 2) if heads_first else x_BSHP

    y_BSHP = rotate_halves(given_BSHP, angle_BS1N.cos(), angle_BS1N.sin())
    first, second, rest = x_BSHP.split([num_pairs, num_pairs, unrotated], -1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle_BS1N), angle_BS1N)
    expected = torch.cat((turned.real, turned.imag, rest), -1)
    torch.testing.assert_close(y_BSHP, expected)

    dy_BSHP = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad(y, x_BSHP, dy_BSHP)[0] for y in (y_BSHP, expected)))


@settings(max_examples=8, deadline=None)
@given(num_pairs=st.integers(0, 5), unrotated=st.integers(0, 3), per_sequence=st.booleans(), heads_first=st.booleans(),
       dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_triton_equals_float64(num_pairs, unrotated, per_sequence, heads_first, dtype):
    torch.manual_seed(num_pairs)
    x_BSHP = torch.randn(2, 7, 3, 2 * num_pairs + unrotated or 1, dtype=torch.float64)
    angle_BS1N = torch.randn(2 if per_sequence else 1, 7, 1, num_pairs, dtype=torch.float64)

    def by(backend):
        def run(x_BSHP, cos_BS1N, sin_BS1N):
            given_BSHP = x_BSHP.transpose(1, 2).contiguous().transpose(1, 2) if heads_first else x_BSHP
            return rotate_halves(given_BSHP, cos_BS1N, sin_BS1N, backend)

        return run

    check_kernel(by("triton"), by("torch"), [x_BSHP, angle_BS1N.cos(), angle_BS1N.sin()], dtype, precise=[1, 2])


def test_triton_at_the_size_of_a_model():
    """Several programs, the last of them not full."""
    torch.manual_seed(0)
    x_BSHP, angle_1S1N = torch.randn(2, 25, 3, 64, dtype=torch.float64), torch.randn(1, 25, 1, 32, dtype=torch.float64)
    check_kernel(lambda *tensors: rotate_halves(*tensors, "triton"), rotate_halves,
                 [x_BSHP, angle_1S1N.cos(), angle_1S1N.sin()], torch.bfloat16, precise=[1, 2])
