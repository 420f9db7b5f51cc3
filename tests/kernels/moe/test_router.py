"""The router: Triton's body against float64, and which experts it chooses.

B batch, S sequence, E experts.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.moe.router import SCORINGS, route
from tests.helpers.kernels import check_kernel


def inputs(shape, with_bias=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits_BSE = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return [logits_BSE, torch.randn(shape[2], generator=generator, dtype=torch.float64) if with_bias else None]


def check(shape, top_k, scoring, normalize, with_bias=False, seed=0, dtype=torch.float32):
    def by(backend):
        return lambda logits_BSE, bias_E: route(
            logits_BSE, top_k, scoring, normalize, None if bias_E is None else bias_E.detach(), backend
        )

    check_kernel(by("triton"), by("torch"), inputs(shape, with_bias, seed), dtype, precise=[1])


def choices(logits_BSE, top_k, bias_E=None, scoring="softmax_topk"):
    """What both backends choose, which must be the same."""
    index_BSK, again_BSK = (
        route(logits_BSE, top_k, scoring, True, bias_E, backend).index_BSK for backend in ("triton", "torch")
    )
    assert torch.equal(index_BSK, again_BSK)
    return index_BSK


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_equals_float64(scoring, with_bias, normalize):
    check((3, 37, 12), 3, scoring, normalize, with_bias)


@pytest.mark.parametrize("shape, top_k, scoring", [
    ((1, 1, 1), 1, "sigmoid"), ((2, 1, 5), 1, "softmax_topk"), ((1, 70, 6), 6, "topk_softmax"),
    ((5, 3, 20), 8, "softmax_topk"), ((1, 3, 20), 12, "sigmoid"), ((1, 2, 40), 32, "softmax_topk"),
    ((1, 1, 40), 40, "topk_softmax"), ((1, 9, 512), 2, "softmax_topk"),
], ids=str)
def test_any_number_of_experts_and_choices(shape, top_k, scoring):
    check(shape, top_k, scoring, True)


@settings(max_examples=6, deadline=None)
@given(st.tuples(st.integers(1, 4), st.integers(1, 50), st.integers(1, 30)), st.integers(1, 8),
       st.sampled_from(SCORINGS), st.booleans(), st.booleans(), st.integers(0, 99))
def test_any_sizes(shape, top_k, scoring, normalize, with_bias, seed):
    check(shape, min(top_k, shape[2]), scoring, normalize, with_bias, seed)


def test_logits_may_be_bfloat16():
    check((2, 9, 12), 3, "softmax_topk", True, dtype=torch.bfloat16)


def test_no_token_at_all():
    for backend in ("triton", "torch"):
        logits_BSE = torch.zeros(2, 0, 5, requires_grad=True)
        routed = route(logits_BSE, 2, "sigmoid", True, None, backend)
        (routed.gate_BSK.sum() + routed.probability_BE.sum() + routed.square_B.sum()).backward()
        assert routed.index_BSK.shape == (2, 0, 2) and logits_BSE.grad.shape == (2, 0, 5)
        assert routed.rows_BE.tolist() == [[0] * 5] * 2


@pytest.mark.parametrize("top_k", [3, 12])
def test_the_lowest_index_wins_exact_ties(top_k):
    generator = torch.Generator().manual_seed(0)
    logits_BSE = torch.randint(-1, 2, (1, 6, 20), generator=generator).float()
    logits_BSE[0, 0] = torch.tensor([0.0, -0.0]).repeat(10)  # which are equal
    index_BSK = choices(logits_BSE, top_k)
    for row, chosen in zip(logits_BSE[0].tolist(), index_BSK[0].tolist(), strict=True):
        assert chosen == sorted(range(20), key=lambda expert: (-row[expert], expert))[:top_k]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of sigmoids that are 0
def test_logits_whose_scores_round_to_the_same_are_told_apart():
    """One that a logit's last bit decides, sigmoids that are all 1, and probabilities that are all 0."""
    logits_BSE = torch.tensor([[[1.0, 1.0 + 2**-23, 0.0], [30.0, 40.0, 20.0], [-300.0, 0.0, -200.0]]])
    expected = [[[1, 0, 2], [1, 0, 2], [1, 2, 0]]]
    assert choices(logits_BSE, 3).tolist() == choices(logits_BSE, 3, scoring="sigmoid").tolist() == expected


def test_a_bias_ranks_scores():
    logits_BSE = torch.tensor([[[2.0, 1.0, 0.0, -1.0]]])
    bias_E = torch.tensor([0.0, 0.0, 0.45, 0.45])  # to sigmoids 0.881, 0.731, 0.5, 0.269
    assert choices(logits_BSE, 4, bias_E, "sigmoid").tolist() == [[[2, 0, 1, 3]]]
    assert choices(torch.full((1, 1, 4), 1.0), 3, bias_E, "sigmoid").tolist() == [[[2, 3, 0]]]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of sigmoids that are 0
@pytest.mark.parametrize("scoring", SCORINGS)
def test_scores_that_all_underflow_leave_everything_finite(scoring):
    for backend in ("triton", "torch"):
        logits_BSE = torch.full((1, 2, 4), -1000.0).index_fill_(2, torch.tensor([0]), -2000.0).requires_grad_()
        routed = route(logits_BSE, 2, scoring, True, torch.tensor([9.0, 0, 0, 0]), backend)
        (routed.gate_BSK.sum() + routed.probability_BE[0, 0] + routed.square_B.sum()).backward()
        assert all(value.isfinite().all() for value in (*routed, logits_BSE.grad))


def test_an_unknown_scoring_is_refused():
    with pytest.raises(ValueError, match="scoring 'relu' is not known; allowed: softmax_topk, topk_softmax, sigmoid"):
        route(torch.zeros(1, 1, 2), 1, "relu", True)


def test_compiles_whole_and_runs_on_meta_tensors():
    def gradients(logits_BSE):
        routed = route(logits_BSE, 2, "softmax_topk", True, None, "triton")
        return routed.gate_BSK.square().sum() + (routed.probability_BE * routed.rows_BE).sum() + routed.square_B.sum()

    logits_BSE = inputs((2, 5, 6))[0].float().requires_grad_()
    expected = torch.autograd.grad(gradients(logits_BSE), logits_BSE)[0]
    compiled = torch.compile(gradients, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(logits_BSE), logits_BSE)[0], expected, rtol=0, atol=0)
    routed = route(logits_BSE.to("meta"), 2, "sigmoid", True, None, "triton")
    assert routed.gate_BSK.is_meta and routed.rows_BE.dtype == torch.int64
