"""Rows copied from tokens and summed back to them: Triton's body against float64.

T tokens, D model width, M rows.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import profile

from kernels.moe.rows import gather_rows, rows_of_choices, rows_of_tokens, sum_rows
from kernels.moe.symmetric import rows_of_places
from tests.helpers.kernels import check_kernel


def check(token_M, num_tokens, width, dtype, rows=None, seed=0):
    def by(backend):
        def both(x_TD, y_MD, weight_M):
            return (gather_rows(x_TD, token_M, rows, backend),
                    sum_rows(y_MD, token_M, num_tokens, rows, backend=backend),
                    sum_rows(y_MD, token_M, num_tokens, rows, weight_M, backend))
        return both

    generator = torch.Generator().manual_seed(seed)
    arguments = [torch.randn(shape, generator=generator, dtype=torch.float64)
                 for shape in ((num_tokens, width), (len(token_M), width), (len(token_M),))]
    check_kernel(by("triton"), by("torch"), arguments, dtype, precise=[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens, num_tokens, width", [
    ([0], 1, 64), ([], 3, 8), ([4, 1, 1, 4, 2, 4, 0], 6, 137), ([1] * 40, 3, 8),
], ids=["one", "none", "some tokens without rows", "all rows of one token"])
def test_equals_float64(tokens, num_tokens, width, dtype):
    check(torch.tensor(tokens, dtype=torch.int64), num_tokens, width, dtype)


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=8, max_size=30), st.integers(1, 140), st.integers(0, 99))
def test_any_rows(tokens, width, seed):
    """Rows enough that not all of the weights' gradients, of which each is one sum, can be all but zero."""
    check(torch.tensor(tokens, dtype=torch.int64), 7, width, torch.float32, seed=seed)


def test_rows_that_are_given_are_those_that_are_found():
    generator = torch.Generator().manual_seed(0)
    order_M = torch.randperm(18, generator=generator)
    token_M, place_M = order_M // 3, order_M.argsort()
    given_rows, found = rows_of_choices(place_M, 3), rows_of_tokens(token_M, 6)
    assert torch.equal(given_rows.start_T1, found.start_T1)
    for token in range(6):
        rows = [rows.row_M[3 * token: 3 * token + 3].sort().values for rows in (given_rows, found)]
        assert torch.equal(*rows) and (token_M[rows[0]] == token).all()
    check(token_M, 6, 16, torch.float32, given_rows)


def test_rows_after_the_last_are_no_tokens():
    """Whatever number stands there."""
    start_T1, row_M = rows_of_tokens(torch.tensor([2, 0, 2, -5, 99]), 3, torch.tensor(3))
    assert start_T1.tolist() == [0, 1, 1, 3] and row_M[:3].tolist() == [1, 0, 2]


def test_spare_rows_are_counted_without_adding_to_one_cell():
    """Additions to one address wait for each other, and spare rows may be most."""
    with profile() as profiled:
        start_T1, row_M = rows_of_tokens(torch.tensor([1, 1, 0, 7, 7, 7]), 3, torch.tensor(3))
        start_V1, row_N = rows_of_places(torch.tensor([3, 0, 3, 9, 9]), torch.tensor([2, 1]), 4, deduplicated=True)
    assert start_T1.tolist() == [0, 1, 3, 3] and row_M[:3].tolist() == [2, 0, 1]
    assert start_V1.tolist() == [0, 1, 1, 1, 3] and row_N[:3].tolist() == [1, 0, 2]
    ran = {event.key for event in profiled.key_averages()}
    assert "aten::searchsorted" in ran and not any("scatter_add" in name or "bincount" in name for name in ran)


def test_bfloat16_is_summed_in_float32():
    """bfloat16 has nothing between 256 and 258."""
    y_TD = sum_rows(torch.ones(600, 8, dtype=torch.bfloat16), torch.zeros(600, dtype=torch.int64), 1, backend="triton")
    assert torch.equal(y_TD, torch.full((1, 8), 600.0, dtype=torch.bfloat16))
