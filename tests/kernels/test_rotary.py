"""`rotate_halves` against multiplication by complex numbers of modulus one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import rotate_halves


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
