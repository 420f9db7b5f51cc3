"""Mamba-2's gated norm: Triton's body against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ssm.gated_norm import gated_rms_norm
from tests.helpers.kernels import check_kernel


def inputs(rows, groups, group_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, groups * group_size)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in (shape, shape, shape[1:])]


def check(rows, groups, group_size, dtype, seed=0):
    def by(backend):
        return lambda y, z, weight: gated_rms_norm(y, z, weight, group_size, 1e-5, backend)

    check_kernel(by("triton"), by("torch"), inputs(rows, groups, group_size, seed), dtype, precise=[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 1, 4), (1, 3, 5), (16, 1, 64), (40, 2, 24)])
def test_equals_float64(sizes, dtype):
    check(*sizes, dtype)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(4, 40), st.integers(0, 99))
def test_any_sizes(rows, groups, group_size, seed):
    check(rows, groups, group_size, torch.float32, seed)
