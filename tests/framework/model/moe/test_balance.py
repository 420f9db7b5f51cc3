"""Auxiliary losses against plain formulas in float64, and how they enter gradients.

B batch, S sequence, D model width, E experts, K choices per token.
"""

import pytest
import torch

from framework.model.context import Context
from framework.model.moe import AttachLoss, MixtureOfExperts
from framework.recipe.schema import MoE

BATCH_SIZE, SEQ_LEN, D_MODEL, NUM_EXPERTS, TOP_K = 3, 10, 8, 6, 2


def block(**fields):
    settings = MoE(**{"num_experts": NUM_EXPERTS, "top_k": TOP_K, "d_expert": 4, **fields})
    moe = MixtureOfExperts(D_MODEL, settings, 1e-5)
    torch.manual_seed(0)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter)
    return moe.double()


def formula(logits_BSE, index_BSK, router, over):
    """Mean over sequences of E * sum_e f_e P_e, spelled out token by token."""
    total = 0.0
    for b in range(BATCH_SIZE):
        sequences = [b] if over == "sequence" else range(BATCH_SIZE)
        for e in range(NUM_EXPERTS):
            chosen = [index_BSK[c, s, k] == e for c in sequences for s in range(SEQ_LEN) for k in range(TOP_K)]
            probabilities = []
            for s in range(SEQ_LEN):
                score_E = logits_BSE[b, s].sigmoid() if router == "sigmoid" else logits_BSE[b, s].exp()
                probabilities.append(score_E[e] / score_E.sum())
            total = total + NUM_EXPERTS * sum(chosen) / len(chosen) * sum(probabilities) / SEQ_LEN
    return total / BATCH_SIZE


@pytest.mark.parametrize("over", ["sequence", "forward"])
@pytest.mark.parametrize("router", ["softmax_topk", "topk_softmax", "sigmoid"])
def test_load_balance_loss_and_its_gradient_equal_the_formula(router, over):
    moe = block(router=router, load_balance_weight=0.3, load_balance_over=over)
    x_BSD = torch.randn(BATCH_SIZE, SEQ_LEN, D_MODEL, dtype=torch.float64)
    (0.0 * moe(x_BSD, Context(num_sequences=BATCH_SIZE))).sum().backward()

    weight_ED = moe.router.weight.detach().requires_grad_()
    logits_BSE = x_BSD @ weight_ED.t()
    expected = 0.3 * formula(logits_BSE, logits_BSE.topk(TOP_K).indices, router, over)
    expected.backward()
    torch.testing.assert_close(moe.take_statistics()["load_balance_loss"], expected.detach())
    torch.testing.assert_close(moe.router.weight.grad, weight_ED.grad)


def test_even_loads_give_one_whatever_top_k():
    moe = block(num_experts=4, top_k=2, load_balance_weight=1.0)
    with torch.no_grad():
        moe.router.weight.copy_(torch.eye(4, D_MODEL))
    pairs = torch.tensor([[0, 1], [2, 3]])
    x_BSD = torch.nn.functional.one_hot(pairs, D_MODEL).sum(1).double()[None]
    moe(x_BSD, Context(num_sequences=1))
    assert moe.take_statistics()["load_balance_loss"].item() == pytest.approx(1.0, rel=1e-12)


def test_z_loss_and_its_gradient_equal_the_formula():
    moe = block(z_loss_weight=0.2)
    x_BSD = torch.randn(BATCH_SIZE, SEQ_LEN, D_MODEL, dtype=torch.float64)
    (0.0 * moe(x_BSD, Context(num_sequences=BATCH_SIZE))).sum().backward()
    weight_ED = moe.router.weight.detach().requires_grad_()
    expected = 0.2 * (x_BSD @ weight_ED.t()).exp().sum(-1).log().square().mean()
    expected.backward()
    torch.testing.assert_close(moe.take_statistics()["z_loss"], expected.detach())
    torch.testing.assert_close(moe.router.weight.grad, weight_ED.grad)


@pytest.mark.parametrize("over", ["sequence", "forward"])
def test_shares_of_forwards_of_unequal_size_are_weighted_by_their_sequences(over):
    moe = block(load_balance_weight=1.0, z_loss_weight=1.0, load_balance_over=over)
    x_BSD = torch.randn(5, SEQ_LEN, D_MODEL, dtype=torch.float64)
    expected = {"load_balance_loss": 0.0, "z_loss": 0.0}
    for part in x_BSD.split([1, 4]):
        moe(part, Context(num_sequences=len(part)))
        for name, value in moe.take_statistics().items():
            if name in expected:
                expected[name] += value * len(part) / 5
    for part in x_BSD.split([1, 4]):
        moe(part, Context(num_sequences=5))
    got = moe.take_statistics()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)


@pytest.mark.parametrize("over", ["sequence", "forward"])
def test_a_sequence_without_any_row_has_no_balance_loss_and_nothing_is_nan(over):
    """Experts that choose among the tokens of a position may pass over every token of a sequence."""
    moe = block(num_experts=2, top_k=1, capacity_factor=0.5, router="expert_choice", choice_group="position",
                load_balance_weight=1.0, load_balance_over=over)
    with torch.no_grad():
        moe.router.weight.copy_(torch.eye(2, D_MODEL))
    favoured = torch.tensor([[3.0, -3.0], [-3.0, 3.0]], dtype=torch.float64)
    x_BSD = torch.zeros(3, SEQ_LEN, D_MODEL, dtype=torch.float64)
    x_BSD[:2, :, :2] = favoured[:, None]
    moe(x_BSD, Context(num_sequences=3)).sum().backward()
    taken = moe.take_statistics()
    assert taken["tokens_per_expert_E"].tolist() == [SEQ_LEN, SEQ_LEN]
    favourite, other = torch.tensor([3.0, -3.0], dtype=torch.float64).softmax(0)
    share = 1.0 / 3 if over == "forward" else 0.0
    expected = (2 * favourite * 2 / 3 if over == "sequence" else 2 / 3 * (favourite + other)) + share
    torch.testing.assert_close(taken["load_balance_loss"], expected)
    assert moe.router.weight.grad.isfinite().all()


def test_attaching_leaves_values_alone_and_gives_the_loss_a_gradient_of_one():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    y = AttachLoss.apply(x, weight**2)
    assert torch.equal(y, x)
    (y.sum() * 1e-3).backward()
    assert torch.equal(weight.grad, torch.tensor(4.0, dtype=torch.float64))
    assert torch.equal(x.grad, torch.full_like(x, 1e-3))


def test_losses_attach_in_training_only():
    moe = block(load_balance_weight=1.0)
    x_BSD = torch.randn(2, SEQ_LEN, D_MODEL, dtype=torch.float64)
    gradients = []
    for training in (True, False):
        moe.train(training)
        moe.zero_grad()
        (0.0 * moe(x_BSD, Context())).sum().backward()
        gradients.append(moe.router.weight.grad.abs().max().item())
    assert gradients[0] > 1e-3 and gradients[1] == 0
