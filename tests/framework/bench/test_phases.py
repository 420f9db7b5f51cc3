"""What is measured of steps: phases that sum to them, collectives, even routing, memory, a bare loop beside them."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.bench import timeline as timelines
from framework.bench.balanced import balanced_routing, even_choices
from framework.bench.communication import covered
from framework.bench.memory import forget_peak, peak_bytes
from framework.bench.phases import PHASES
from framework.bench.timeline import OTHER, Timeline
from tests.helpers.benches import MAMBA, MOE, ours
from tests.helpers.runs import write_corpus

CPU = torch.device("cpu")
few = settings(max_examples=20, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    write_corpus(path / "corpus")
    return path


def test_time_is_the_innermost_phases_and_sums_to_all(monkeypatch):
    clock = itertools.count(100)
    monkeypatch.setattr(timelines.time, "perf_counter", lambda: next(clock))
    timeline = Timeline(CPU)
    timeline.start()  # 100
    with timeline.phase("forward"):  # 101
        timeline.within("experts", lambda: next(clock))()  # 102 to 104
    with timeline.phase("backward"):  # 106
        with timeline.phase("experts"):  # 107, 108
            pass
    assert timeline.stop() == {OTHER: 1 + 1 + 1, "forward": 1 + 1, "experts": 2, "backward": 3}  # to 110
    timeline.start()
    assert timeline.stop() == {OTHER: 1}


def phases_on_rank(folder: Path, words: list[str], *changes: str) -> tuple[dict, list[float], int]:
    """Phases, losses of the same steps by another trainer that nothing watches, and hooks that are left."""
    measured, alone = ours(words, folder, *changes), ours(words, folder, *changes)
    engine, batch = vars(measured.trainer.engine).copy(), measured.trainer.data.train.batch
    losses = []
    step = measured.trainer.step
    measured.trainer.step = lambda *given: losses.append(step(*given)) or losses[-1]
    found = measured.phases(num_steps=2)
    expected = [alone.steps.next().loss for _ in range(len(losses))]
    assert [each.loss for each in losses] == expected and len(losses) == (2 if found["communication_seconds"] is None
                                                                          else 4)
    assert vars(measured.trainer.engine) == engine and measured.trainer.data.train.batch == batch
    return found, sum("timeline" in str(hook) for module in measured.trainer.model.modules()
                      for hook in module._forward_hooks.values())


@pytest.mark.parametrize(("words", "num_ranks", "changes", "absent"), [
    (MAMBA, 1, (), {"ffn"}),
    (MAMBA, 1, ("training.recompute=full", "model.pattern=*-"), {"ssm", "router", "dispatch", "experts", "combine"}),
    (MOE, 1, ("training.recompute=selective",), {"ffn", "ssm"}),
    (MOE, 2, ("parallel.dp_shard=2", "parallel.ep=2"), {"ffn", "ssm"}),
    (MOE, 2, ("parallel.pp=2", "data.micro_batch_size=2"), {"ffn", "ssm"}),
])
def test_phases_sum_to_the_step_and_change_nothing(ranks, folder, words, num_ranks, changes, absent):
    (found, hooks), *_ = ranks.run(num_ranks, phases_on_rank, folder, words, *changes)
    assert set(found["seconds"]) == set(PHASES) - absent and hooks == 0
    assert min(found["seconds"].values()) > 0
    assert sum(found["seconds"].values()) == pytest.approx(found["step_seconds"])
    assert found["seconds"]["backward"] > found["seconds"]["data"]
    if num_ranks == 1:
        assert found["communication_seconds"] is None
    else:
        assert 0 < found["communication_seconds"]


@few
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=8))
def test_spans_are_counted_once(spans):
    spans = [(start, start + length) for start, length in spans]
    assert covered(spans) == len({each for start, end in spans for each in range(start, end)})


@few
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_even_choices_are_even_and_a_tokens_differ(batch_size, seq_len, num_experts, top_k):
    top_k = min(top_k, num_experts)
    index_BSK = even_choices(batch_size, seq_len, num_experts, top_k, CPU)
    assert all(len(set(row)) == top_k for row in index_BSK.flatten(0, 1).tolist())
    counts = torch.bincount(index_BSK.flatten(), minlength=num_experts)
    rounds, rest = divmod(batch_size * seq_len, num_experts)
    assert counts.min() >= rounds * top_k and counts.max() <= rounds * top_k + min(top_k, rest)


def test_forced_routing_keeps_gates_and_ends_with_its_block():
    from framework.model.moe import routing
    from framework.recipe.schema import MoE

    logits_BSE = 3 * torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    choose = lambda: routing.tokens_choose(logits_BSE, None, MoE(num_experts=4, top_k=2, d_expert=8), drop=False)  # noqa: E731
    real = choose()
    with balanced_routing():
        forced = choose()
    again = choose()
    assert forced.assignment.counts_E.tolist() == [8] * 4 == forced.rows_BE.sum(0).tolist()
    assert real.assignment.counts_E.tolist() == again.assignment.counts_E.tolist() != [8] * 4
    assert torch.equal(forced.assignment.gate_M.sort().values, real.assignment.gate_M.sort().values)
    for token in range(16):
        gates = [each.assignment.gate_M[each.assignment.token_M == token].sort().values for each in (forced, real)]
        assert torch.equal(*gates)


def rounds_on_rank(folder: Path) -> tuple[dict, dict, dict]:
    measured = ours(MOE, folder, "model.moe.capacity_factor=0.5")
    return measured.round(2), measured.round(2, balanced=True), measured.facts()


def test_rounds_tell_imbalance_and_rows_that_were_dropped(ranks, folder):
    ((real, even, facts),) = ranks.run(1, rounds_on_rank, folder)
    assert real["tokens"] == even["tokens"] == 2 * 4 * 16 and real["seconds"] > 0
    assert real["imbalance"] > 1.1 and even["imbalance"] == 1
    # A sequence of 16 tokens leaves an expert int(0.5 * 16 * 2 / 4) = 4 rows.
    assert even["dropped_fraction"] == even["rows_per_choice"] == 0.5
    assert real["rows_per_choice"] == pytest.approx(1 - real["dropped_fraction"]) and real["dropped_fraction"] > 0.5
    assert facts["peak_flops_per_second"] > 1e8 and facts["peak_memory_bytes"] > 1e8


def test_memory_is_the_most_since_it_was_forgotten():
    forget_peak(CPU)
    before = peak_bytes(CPU)
    held = torch.ones(2**24)
    more = peak_bytes(CPU)
    assert 2**26 * 0.9 < more - before < 2**26 * 1.5
    del held
    assert abs(peak_bytes(CPU) - more) < 2**22  # the kernel counts pages in batches
    forget_peak(CPU)
    assert peak_bytes(CPU) < more - 2**25


def bare_on_rank(folder: Path, words: list[str], *changes: str) -> tuple[float, float, list[float]]:
    """Largest difference of a weight after three steps, the largest change of one, and the overhead of two rounds."""
    from framework.bench.overhead import BareLoop, copied
    from framework.optim import set_learning_rates

    measured = ours(words, folder, *changes)
    bare = BareLoop(measured.loaded, measured.trainer)
    start = copied(measured.loaded, measured.trainer.model).state_dict()
    for step in (1, 2, 3):
        measured.steps.numbered(step)
        set_learning_rates(bare.optimizer, measured.loaded.recipe.optim, step, measured.trainer.budget.num_steps)
        bare.step(bare.batches(step))
    trained = copied(measured.loaded, measured.trainer.model).state_dict()
    difference = max((bare.model.state_dict()[name] - value).abs().max().item() for name, value in trained.items())
    change = max((start[name] - value).abs().max().item() for name, value in trained.items())
    return difference, change, measured.overhead(num_rounds=2, num_steps=1)["rounds"]


@pytest.mark.parametrize(("words", "changes", "within"), [
    (MAMBA, ("data.micro_batch_size=2", "model.moe.load_balance_weight=0.1"), 1e-5),
    (MOE, ("training.dtype=bfloat16", "model.tie_embeddings=true"), 1e-5),
])
def test_the_bare_loop_trains_as_the_trainer_does(ranks, folder, words, changes, within):
    ((difference, change, rounds),) = ranks.run(1, bare_on_rank, folder, words, *changes)
    assert difference < within < 1e-2 * change
    assert len(rounds) == 2 and all(each > -1 for each in rounds)


def refused_on_rank(folder: Path) -> list:
    return [ours(MOE, folder, change).overhead(1, 1)["rounds"]
            for change in ("training.recompute=full", "data.isolate_documents=true")]


def test_no_bare_loop_stands_beside_other_work(ranks, folder):
    assert ranks.run(1, refused_on_rank, folder) == [[None, None]]
