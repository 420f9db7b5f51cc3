"""Rows padded into batches, on any layout, get what each gets alone from one plain model in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from framework.model import Context, LanguageModel
from framework.parallelize import parallelize
from framework.parallelize.pipeline import LanguageModelPipeline
from framework.recipe.stages import stage_layers
from framework.tasks.collective import BrokenOff, Team
from framework.tasks.continuation import with_caches
from framework.tasks.rows import Row
from framework.tasks.scoring import Scorer, padded_length
from kernels import linear_cross_entropy
from parallel import Mesh, MeshSizes
from tests.helpers.models import MOE, VOCAB, initialized, sizes

SEQ_LEN = 32
MODELS = {
    "experts that drop in training": dict(pattern="*E-", moe=MOE | dict(capacity_factor=0.5)),
    "Mamba-1": dict(pattern="m*"), "Mamba-2 and experts": dict(pattern="MEM", tie_embeddings=True),
    "logits are scaled": dict(pattern="*-", multipliers=dict(logits=0.3)),
}
HYBRID = dict(pattern="*EME")
LAYOUTS = {
    "dp2": MeshSizes(dp_shard=2), "ep2": MeshSizes(dp_shard=2, ep=2), "tp2": MeshSizes(tp=2), "cp2": MeshSizes(cp=2),
    "pp2": MeshSizes(pp=2), "tp2xcp2xep4": MeshSizes(tp=2, cp=2, ep=4), "pp2xep2": MeshSizes(pp=2, dp_shard=2, ep=2),
}


def rows() -> list[Row]:
    """Of all lengths up to the longest, with one target or several."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for length, count in ((1, 1), (3, 2), (SEQ_LEN, SEQ_LEN), (17, 5), (8, 1), (30, 9), (2, 1)):
        tokens = torch.randint(VOCAB, (length + 1,), generator=generator).tolist()
        found.append(Row(tuple(tokens[:-1]), tuple(tokens[-count:])))
    return found


@torch.no_grad()
def alone(model: LanguageModel, row: Row) -> list[float]:
    """Nats of the targets, how many are not the likeliest, and the sum of the likeliest: no padding, one row."""
    logits_SV = model.eval()(torch.tensor([row.tokens]), Context())[0, -len(row.targets) :]
    nats = -torch.log_softmax(logits_SV, -1)[range(len(row.targets)), list(row.targets)].sum()
    likeliest = logits_SV.argmax(-1)
    return [nats.item(), int((likeliest != torch.tensor(row.targets)).sum()), int(likeliest.sum())]


def assert_alone(results: Tensor, model: LanguageModel) -> None:
    torch.testing.assert_close(results, torch.tensor([alone(model, row) for row in rows()], dtype=torch.float64),
                               rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_neither_padding_nor_the_rest_of_a_batch_changes_a_row(name):
    model = initialized(**MODELS[name])
    for batch_size in (1, 3, 8):
        assert_alone(Scorer(model, SEQ_LEN, batch_size, torch.device("cpu")).score(rows()), model)
    assert model.unembedding.cross_entropy is linear_cross_entropy


def scored(mesh_sizes: MeshSizes) -> Tensor:
    mesh = Mesh(mesh_sizes, "cpu")
    stages = stage_layers(sizes(**HYBRID), SEQ_LEN, mesh_sizes.pp)
    model = parallelize(initialized(**HYBRID), mesh, dtype=torch.float64, stages=stages)
    run = LanguageModelPipeline(model, mesh, "1f1b").evaluate if mesh_sizes.pp > 1 else None
    scorer = Scorer(model, SEQ_LEN, 2, torch.device("cpu"), mesh_sizes, mesh.batch.get_local_rank(), run)
    scorer.score(rows()[:3])
    return scorer.score(rows())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_of_any_layout_gets_what_one_rank_does(ranks, layout):
    for results in ranks.run(LAYOUTS[layout].world, scored, LAYOUTS[layout]):
        assert_alone(results, initialized(**HYBRID))


def asked(fails: bool) -> str:
    """What a rank gets of a team in which rank 0 asks twice, and then may fail."""
    mesh = Mesh(MeshSizes(dp_shard=2), "cpu")

    def broadcast(value):
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    model = parallelize(initialized(**HYBRID), mesh, dtype=torch.float64)
    team = Team(Scorer(model, SEQ_LEN, 2, torch.device("cpu"), mesh.sizes, mesh.batch.get_local_rank()), broadcast)

    def ask() -> float:
        total = team.score(rows())[:, 0].sum() + team.score(rows()[:1])[:, 0].sum() + team.score([]).sum()
        if fails:
            raise ValueError("no such metric")
        return total.item()

    try:
        return str(team.lead(ask)) if torch.distributed.get_rank() == 0 else str(team.follow())
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def test_one_rank_asks_and_its_failure_is_one_of_all(ranks):
    model = initialized(**HYBRID)
    total, nothing = ranks.run(2, asked, False)
    assert nothing == "None"
    assert float(total) == pytest.approx(sum(alone(model, row)[0] for row in [*rows(), rows()[0]]), rel=1e-10)
    assert ranks.run(2, asked, True) == ["ValueError: no such metric",
                                         "RuntimeError: tasks on rank 0: ValueError: no such metric"]


def test_a_stop_leaves_no_result():
    answers = iter([True, False, True])
    scorer = Scorer(initialized(pattern="*-"), SEQ_LEN, 2, torch.device("cpu"), goes_on=lambda: next(answers))
    assert scorer.score(rows()) is None and next(answers) is True  # two forwards of four
    team = Team(Scorer(scorer.model, SEQ_LEN, 2, torch.device("cpu"), goes_on=lambda: False))
    assert team.lead(lambda: team.score(rows())) is None
    with pytest.raises(BrokenOff):
        team.score(rows())


def test_progress_counts_rows_as_they_are_done():
    told = []
    model = initialized(pattern="*-")
    scorer = Scorer(model, SEQ_LEN, 2, torch.device("cpu"), watch=lambda done, more: told.append((done, more)))
    scorer.score(rows())
    assert told[0] == (0, len(rows())) and {more for _, more in told[1:]} == {0}
    assert max(done for done, _ in told) == 2 and sum(done for done, _ in told) == len(rows())
    told.clear()
    continued = with_caches(model, 2, lambda done, more: told.append((done, more)))
    continued([(1, 2), (3,), (4, 5), (6, 7)], 2, lambda tokens: False)
    assert told == [(0, 4), (2, 0), (1, 0), (1, 0)]


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 9), st.integers(1, 100), st.sampled_from([(1, 1), (2, 1), (4, 2), (1, 3)]))
def test_a_padded_row_can_be_split_and_is_hardly_longer_than_it_must_be(exponent, share, degrees):
    cp, tp = degrees
    seq_len = 2**exponent * cp * tp * 3
    longest = max(1, seq_len * share // 100)
    length = padded_length(longest, seq_len, cp, tp)
    assert longest <= length <= seq_len and seq_len % length == 0 and length % (cp * tp) == 0
    assert length < 2 * longest or length == seq_len or length // cp < 16 or (length // 2) % (cp * tp)
