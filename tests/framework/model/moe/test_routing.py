"""Which experts tokens go to: gates, ties, capacity, expert choice.

B batch, S sequence, T = B * S tokens, E experts, K choices per token, M routed rows.
"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.model.moe.assignment import within_capacity
from framework.model.moe.routing import capacity, experts_choose, largest, tokens_choose
from framework.recipe.schema import MoE

ROUTERS = ("softmax_topk", "topk_softmax", "sigmoid")


def moe(num_experts, top_k, **fields):
    return MoE(num_experts=num_experts, top_k=top_k, d_expert=1, **fields)


def logits(batch_size, seq_len, num_experts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, seq_len, num_experts, generator=generator, dtype=torch.float64)


def dense_gates(assignment, num_tokens):
    """[T, E]: the gate of every pair, zero where there is no row."""
    expert_M = torch.repeat_interleave(torch.arange(len(assignment.counts_E)), assignment.counts_E)
    gates_TE = torch.zeros(num_tokens, len(assignment.counts_E), dtype=assignment.gate_M.dtype)
    return gates_TE.index_put((assignment.token_M, expert_M), assignment.gate_M, accumulate=True)


shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7))


@settings(max_examples=40, deadline=None)
@given(shape=shapes, router=st.sampled_from(ROUTERS), scale=st.sampled_from([1.0, 2.5]), data=st.data())
def test_normalised_gates_of_a_token_sum_to_the_scale(shape, router, scale, data):
    batch_size, seq_len, num_experts = shape
    top_k = data.draw(st.integers(1, num_experts))
    chosen = tokens_choose(logits(*shape), None, moe(num_experts, top_k, router=router, gate_scale=scale), drop=False)
    gates_TE = dense_gates(chosen.assignment, batch_size * seq_len)
    torch.testing.assert_close(gates_TE.sum(1), torch.full((batch_size * seq_len,), scale, dtype=torch.float64))
    assert ((gates_TE > 0).sum(1) == top_k).all()
    assert chosen.rows_BE.sum(1).tolist() == [seq_len * top_k] * batch_size
    assert torch.equal(chosen.rows_BE.sum(0), chosen.assignment.counts_E) and chosen.num_dropped == 0


@settings(max_examples=40, deadline=None)
@given(shape=shapes, router=st.sampled_from((*ROUTERS, "expert_choice")), normalize=st.booleans(), data=st.data())
def test_permuting_experts_permutes_the_assignment(shape, router, normalize, data):
    batch_size, seq_len, num_experts = shape
    settings_ = moe(num_experts, data.draw(st.integers(1, num_experts)), router=router, normalize_top_k=normalize)
    permutation = torch.tensor(data.draw(st.permutations(range(num_experts))))
    logits_BSE = logits(*shape)

    def gates(values_BSE):
        routing = (experts_choose(values_BSE, settings_) if router == "expert_choice"
                   else tokens_choose(values_BSE, None, settings_, drop=False))
        return dense_gates(routing.assignment, batch_size * seq_len)

    torch.testing.assert_close(gates(logits_BSE[..., permutation]), gates(logits_BSE)[:, permutation])


def test_unnormalised_gates_are_the_scores():
    logits_BSE = logits(2, 3, 4)
    scores = {"softmax_topk": logits_BSE.softmax(-1), "sigmoid": logits_BSE.sigmoid()}
    for router, scores_BSE in scores.items():
        chosen = tokens_choose(logits_BSE, None, moe(4, 4, router=router, normalize_top_k=False), drop=False)
        torch.testing.assert_close(dense_gates(chosen.assignment, 6), scores_BSE.flatten(0, 1))


def test_the_selection_bias_moves_choices_but_not_gates():
    logits_BSE = logits(2, 5, 4)
    settings_ = moe(4, 2, router="sigmoid", normalize_top_k=False)
    bias_E = torch.tensor([0.0, 10.0, 0.0, 20.0])
    biased = tokens_choose(logits_BSE, bias_E, settings_, drop=False)
    gates_TE = dense_gates(biased.assignment, 10)
    assert biased.assignment.counts_E.tolist() == [0, 10, 0, 10]
    torch.testing.assert_close(gates_TE[:, [1, 3]], logits_BSE.sigmoid().flatten(0, 1)[:, [1, 3]])


def test_sigmoids_that_all_underflow_give_finite_gates_and_gradients():
    logits_BSE = torch.full((1, 2, 4), -1000.0, requires_grad=True)
    gate_M = tokens_choose(logits_BSE, None, moe(4, 2, router="sigmoid"), drop=False).assignment.gate_M
    gate_M.sum().backward()
    assert gate_M.isfinite().all() and logits_BSE.grad.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=40, max_size=40), min_size=1, max_size=3), st.integers(1, 40))
def test_the_lowest_index_wins_ties(rows, num):
    expected = [sorted(range(len(row)), key=lambda index: (-row[index], index))[:num] for row in rows]
    assert largest(torch.tensor(rows, dtype=torch.float32), num, dim=1).tolist() == expected
    assert largest(torch.tensor(rows, dtype=torch.float32).t(), num, dim=0).t().tolist() == expected


@settings(max_examples=60, deadline=None)
@given(shape=shapes, limit=st.integers(1, 5), seed=st.integers(0, 99), data=st.data())
def test_capacity_keeps_first_choices_first_and_then_the_earliest(shape, limit, seed, data):
    batch_size, seq_len, num_experts = shape
    top_k = data.draw(st.integers(1, num_experts))
    index_BSK = largest(logits(*shape, seed), top_k, dim=2)
    kept_BSK = within_capacity(index_BSK, num_experts, limit)
    for sequence, kept_SK in zip(index_BSK.tolist(), kept_BSK.tolist(), strict=True):
        taken = [0] * num_experts
        for choice in range(top_k):
            for position in range(seq_len):
                expert = sequence[position][choice]
                assert kept_SK[position][choice] == (taken[expert] < limit)
                taken[expert] += 1


def test_dropped_rows_are_left_out_and_the_others_keep_their_gates():
    logits_BSE = logits(3, 16, 8)
    settings_ = moe(8, 2, capacity_factor=1.0)
    whole = tokens_choose(logits_BSE, None, settings_, drop=False)
    dropped = tokens_choose(logits_BSE, None, settings_, drop=True)
    limit = capacity(settings_, 16)
    assert limit == 4
    rows_BE = torch.stack([(dense_gates(dropped.assignment, 48)[16 * b : 16 * b + 16] > 0).sum(0) for b in range(3)])
    assert torch.equal(rows_BE, whole.rows_BE.clamp(max=limit)) and torch.equal(whole.rows_BE, dropped.rows_BE)
    assert dropped.num_dropped == (whole.rows_BE - rows_BE).sum() > 0
    kept = dense_gates(dropped.assignment, 48)
    torch.testing.assert_close(kept, torch.where(kept > 0, dense_gates(whole.assignment, 48), 0.0))


def test_capacity_is_per_sequence_so_that_batches_may_be_split():
    logits_BSE = logits(4, 12, 6)
    settings_ = moe(6, 2, capacity_factor=0.8)
    together = dense_gates(tokens_choose(logits_BSE, None, settings_, drop=True).assignment, 48)
    halves = [tokens_choose(half, None, settings_, drop=True).assignment for half in logits_BSE.split(2)]
    torch.testing.assert_close(together, torch.cat([dense_gates(half, 24) for half in halves]))


def test_capacity_rounds_down_but_not_to_zero():
    assert [capacity(moe(8, 2, capacity_factor=factor), 16) for factor in (1.0, 1.25, 1.3)] == [4, 5, 5]
    assert capacity(moe(8, 1), 1) == 1


@settings(max_examples=40, deadline=None)
@given(shape=shapes, group=st.sampled_from(["sequence", "position"]), factor=st.sampled_from([None, 0.5, 2.0]),
       data=st.data())
def test_every_expert_takes_exactly_its_capacity_of_the_best_of_each_group(shape, group, factor, data):
    batch_size, seq_len, num_experts = shape
    settings_ = moe(num_experts, data.draw(st.integers(1, num_experts)), router="expert_choice", choice_group=group,
                    capacity_factor=factor)
    logits_BSE = logits(*shape)
    chosen = experts_choose(logits_BSE, settings_)
    gates_BSE = dense_gates(chosen.assignment, batch_size * seq_len).view(shape)
    group_dim = 1 if group == "sequence" else 0
    group_size = shape[group_dim]
    taken = min(group_size, max(1, int((factor or 1.0) * group_size * settings_.top_k / num_experts)))
    assert ((gates_BSE > 0).sum(group_dim) == taken).all()
    assert torch.equal((gates_BSE > 0).sum(1), chosen.rows_BE)
    scores_BSE = logits_BSE.softmax(-1)
    torch.testing.assert_close(gates_BSE, torch.where(gates_BSE > 0, scores_BSE, 0.0))
    worst_taken = torch.where(gates_BSE > 0, scores_BSE, torch.inf).amin(group_dim)
    best_left = torch.where(gates_BSE > 0, -torch.inf, scores_BSE).amax(group_dim)
    assert (worst_taken >= best_left).all()
