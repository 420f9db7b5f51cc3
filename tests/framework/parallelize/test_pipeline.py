"""A model cut into stages gives one rank's loss and gradients, under every schedule.

Shapes: B batch, S sequence.
"""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from framework.model import Context
from framework.parallelize import parallelize
from framework.parallelize.pipeline import LanguageModelPipeline, cut_into_stages
from framework.parametrization import initialize
from framework.parametrization.roles import declarations
from framework.recipe.schema import Init
from framework.recipe.stages import stage_layers
from parallel import Mesh, MeshSizes, gradient_norm
from parallel.collectives import all_sum
from tests.helpers.models import VOCAB, assert_near, build, gradients_of, sizes

BATCH, SEQ_LEN = 16, 8
NUM_TOKENS = BATCH * SEQ_LEN


def batch(index: int, count: int) -> tuple[Tensor, Tensor, Context]:
    generator = torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(0, VOCAB, (BATCH, SEQ_LEN + 1), generator=generator)
    document_BS = (torch.rand(BATCH, SEQ_LEN, generator=generator) < 0.2).cumsum(1)
    context = Context(document_BS=document_BS.chunk(count)[index], num_sequences=BATCH)
    return tokens_BS[:, :-1].chunk(count)[index], tokens_BS[:, 1:].chunk(count)[index], context


def on_one_rank(**fields) -> tuple[float, float, dict[str, Tensor]]:
    model = build(**fields)
    initialize(model, Init(), seed=0)
    model.double()
    tokens_BS, targets_BS, context = batch(0, 1)
    model.eval()
    evaluated = model(tokens_BS, context, targets_BS).item()
    model.train()
    loss = model(tokens_BS, context, targets_BS) / NUM_TOKENS
    loss.backward()
    return loss.item(), evaluated, gradients_of(model)


def on_pipeline(degrees: MeshSizes, schedule: str, per_rank: int, num_micro_batches: int, fields: dict,
                recompute: str = "none"):
    mesh, model = Mesh(degrees, "cpu"), build(**fields).double()
    stages = stage_layers(sizes(**fields), SEQ_LEN, per_rank * degrees.pp)
    parallelize(model, mesh, dtype=torch.float64, stages=stages, recompute=recompute)
    model.to_empty(device="cpu")
    initialize(model, Init(), seed=0)
    for parameter in model.parameters():  # as drawn in float32
        parameter.data.copy_(parameter.data.float().double())
    pipeline = LanguageModelPipeline(model, mesh, schedule, split_backward=recompute == "none")
    tokens_BS, targets_BS, context = batch(mesh.batch.get_local_rank(), mesh.batch.size())
    model.eval()
    evaluated = all_sum(pipeline.evaluate(tokens_BS, context, targets_BS), dist.group.WORLD).item()
    model.train()
    for _ in range(2):
        model.zero_grad()
        loss = pipeline.train(tokens_BS, context, targets_BS, num_micro_batches, NUM_TOKENS)
    norm = gradient_norm(pipeline.counted_parameters(), mesh)
    loss = all_sum(loss, dist.group.WORLD).item()
    return loss / degrees.tp, evaluated / degrees.tp, norm.item(), gradients_of(model)


CASES = {
    "pp2": (MeshSizes(pp=2), "1f1b", 1, 4, "*E|*-"),
    "pp4": (MeshSizes(pp=4), "1f1b", 1, 4, "*E*-E"),
    "pp2-interleaved": (MeshSizes(pp=2), "interleaved", 2, 4, "*EmE"),
    "pp4-interleaved": (MeshSizes(pp=4), "interleaved", 2, 8, "*EmE*-ME"),
    "pp2-zb": (MeshSizes(pp=2), "zero_bubble", 1, 4, "*E"),
    "pp2-zb2": (MeshSizes(pp=2), "zero_bubble", 2, 4, "*EmEM-"),
    "pp2xdp_shard2": (MeshSizes(pp=2, dp_shard=2), "1f1b", 1, 4, "*EmE"),
    "pp2xdp_replicate2": (MeshSizes(pp=2, dp_replicate=2), "1f1b", 1, 2, "*EmE"),
    "pp2xep2": (MeshSizes(pp=2, dp_shard=2, ep=2), "1f1b", 1, 2, "*E*E"),
    "pp2xep2-zb": (MeshSizes(pp=2, dp_shard=2, ep=2), "zero_bubble", 1, 4, "*EmE"),
    "pp2xdp_shard2-interleaved": (MeshSizes(pp=2, dp_shard=2), "interleaved", 2, 4, "*EmE"),
    "tp2xpp2": (MeshSizes(pp=2, tp=2), "1f1b", 1, 4, "*EME"),
    "tp2xpp2xep2-zb": (MeshSizes(pp=2, tp=2, ep=2), "zero_bubble", 1, 4, "*E-mM"),
    "cp2xpp2": (MeshSizes(pp=2, cp=2), "1f1b", 1, 4, "*EmE"),
    "cp2xpp2-zb": (MeshSizes(pp=2, cp=2), "zero_bubble", 1, 4, "*EmM"),
    "cp2xtp2xpp2-interleaved": (MeshSizes(pp=2, cp=2, tp=2), "interleaved", 2, 4, "*EmEM"),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_pipeline_equals_one_rank_in_float64(ranks, case, tied):
    degrees, *arguments, pattern = CASES[case]
    loss, evaluated, expected = on_one_rank(pattern=pattern.replace("|", ""), tie_embeddings=tied)
    fields = dict(pattern=pattern, tie_embeddings=tied)
    results = ranks.run(degrees.world, on_pipeline, degrees, *arguments, fields)
    norm = torch.stack([g.square().sum() for g in expected.values()]).sum().sqrt().item()
    seen = set()
    for got_loss, got_evaluated, got_norm, gradients in results:
        assert got_loss == pytest.approx(loss, rel=1e-12)
        assert got_evaluated == pytest.approx(evaluated, rel=1e-12)
        assert got_norm == pytest.approx(norm, rel=1e-10)
        seen |= set(gradients)
        assert_near(gradients, {name: expected[name] for name in gradients})
    assert seen == set(expected)


@pytest.mark.parametrize("schedule", ["1f1b", "zero_bubble"])
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_a_pipeline_recomputes(ranks, schedule, recompute):
    fields = dict(pattern="*E*E")
    loss, _, expected = on_one_rank(**fields)
    results = ranks.run(2, on_pipeline, MeshSizes(pp=2), schedule, 1, 4, fields, recompute)
    for got_loss, *_, gradients in results:
        assert got_loss == pytest.approx(loss, rel=1e-12)
        assert_near(gradients, {name: expected[name] for name in gradients})


def held(fields: dict, num_stages: int) -> dict[str, tuple]:
    """What a rank of two holds, after the cut."""
    with torch.device("meta"):
        model = build(**fields)
    stages = stage_layers(sizes(**fields), SEQ_LEN, num_stages)
    cut_into_stages(model, Mesh(MeshSizes(pp=2), "cpu"), stages)
    assert model.num_residual_branches == len(stages[-1]) + stages[-1].start
    return {name: (declared.role, declared.fan_in) for name, _, _, declared in declarations(model)}


@pytest.mark.parametrize("tied", [False, True])
def test_names_and_declarations_are_those_of_the_whole_model(ranks, tied):
    fields = dict(pattern="*E*E", tie_embeddings=tied)
    first, last = ranks.run(2, held, fields, 4)
    expected = {name: (declared.role, declared.fan_in) for name, _, _, declared in declarations(build(**fields))}
    assert first | last == expected
    assert set(first) & set(last) == ({"embedding.weight"} if tied else set())
    assert {name.split(".")[1] for name in first if name.startswith("layers.")} == {"0", "2"}
