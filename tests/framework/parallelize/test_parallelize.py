"""What `parallelize` makes of a model: precision, initial values from the meta device, refusals, its log."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from framework.model import Context
from framework.parallelize import parallelize
from framework.parametrization import initialize
from framework.recipe.schema import Init
from parallel import Mesh, MeshSizes
from parallel.collectives import all_sum
from tests.helpers.models import MOE, VOCAB, build, initialized, log_of

PATTERN = "*ME"
LAYOUTS = {
    "one": MeshSizes(), "dp_shard2": MeshSizes(dp_shard=2), "ep2": MeshSizes(dp_shard=2, ep=2),
    "hsdp2x2xep2": MeshSizes(dp_replicate=2, dp_shard=2, ep=2), "dp_shard4": MeshSizes(dp_shard=4),
}


def loss_of(model: nn.Module, mesh: Mesh) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(0, VOCAB, (8, 13), generator=generator)
    tokens_BS = tokens_BS.chunk(mesh.batch.size())[mesh.batch.get_local_rank()]
    return model(tokens_BS[:, :-1], Context(num_sequences=8), tokens_BS[:, 1:]) / (8 * 12)


def watch_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """Filled by a forward: in which dtype each module sees its own weights. Apply to the plain model."""
    seen = {}

    def watch(name: str, module: nn.Module, weight: str) -> None:
        plain_forward = module.forward

        def forward(*args: object, **kwargs: object) -> object:
            seen[name] = getattr(module, weight).dtype
            return plain_forward(*args, **kwargs)

        module.forward = forward

    for name, module in model.named_modules():
        own = [local for local, _ in module.named_parameters(recurse=False)]
        if own:
            watch(name, module, own[0])
    return seen


def train_in(sizes: MeshSizes, dtype: torch.dtype) -> tuple[float, dict[str, Tensor], dict[str, torch.dtype]]:
    mesh, model = Mesh(sizes, "cpu"), initialized(torch.float32, pattern=PATTERN)
    seen = watch_dtypes(model)
    parallelize(model, mesh, dtype=dtype)
    loss = loss_of(model, mesh)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name
        assert isinstance(parameter, DTensor), name
    total = all_sum(loss, mesh.loss.get_group()).item()
    return total, {name: p.grad.full_tensor() for name, p in model.named_parameters()}, seen


@pytest.mark.parametrize("layout", ["one", "ep2", "hsdp2x2xep2"])
def test_bfloat16_is_near_float32_and_spares_what_says_so(ranks, layout):
    sizes = LAYOUTS[layout]
    exact, gradients, _ = ranks.run(1, train_in, MeshSizes(), torch.float32)[0]
    loss, got, seen = ranks.run(sizes.world, train_in, sizes, torch.bfloat16)[0]
    assert loss == pytest.approx(exact, rel=0.02)
    for name, gradient in gradients.items():
        cosine = torch.cosine_similarity(got[name].flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.97, f"{name}: {cosine}"
    kept = {name for name, dtype in seen.items() if dtype == torch.float32}
    wanted = {"layers.1.block.dynamics", "layers.2.block.router"}
    # Experts that no data-parallel rank shares are cast by their kernel.
    assert kept - {"layers.2.block.experts"} == wanted


def start_from_meta(sizes: MeshSizes, tied: bool) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = build(pattern=PATTERN, tie_embeddings=tied)
    parallelize(model, Mesh(sizes, "cpu"))
    model.to_empty(device="cpu")
    initialize(model, Init(), seed=3)
    assert (model.embedding.weight is model.unembedding.weight) == tied
    return {name: parameter.detach().full_tensor() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tied", [False, True])
def test_every_layout_starts_from_the_same_values(ranks, layout, tied):
    plain = build(pattern=PATTERN, tie_embeddings=tied)
    initialize(plain, Init(), seed=3)
    for got in ranks.run(LAYOUTS[layout].world, start_from_meta, LAYOUTS[layout], tied):
        assert got.keys() == dict(plain.named_parameters()).keys()
        for name, parameter in plain.named_parameters():
            assert torch.equal(got[name], parameter), name


def refusal(sizes: MeshSizes, fields: dict) -> str:
    mesh = Mesh(sizes, "cpu")
    with pytest.raises(ValueError) as error:
        parallelize(build(pattern=PATTERN, **fields), mesh)
    return str(error.value)


def test_heads_that_do_not_divide_are_refused(ranks):
    fields = dict(attention=dict(num_heads=1))
    assert ranks.run(2, refusal, MeshSizes(tp=2), fields)[0] == "tp=2 must divide the 1 query heads"


def test_experts_that_do_not_divide_are_refused(ranks):
    fields = dict(moe=MOE | dict(num_experts=3))
    assert ranks.run(2, refusal, MeshSizes(dp_shard=2, ep=2), fields)[0] == "ep=2 must divide the 3 experts"


def log_lines() -> list[str]:
    with log_of("framework.parallelize") as lines:
        parallelize(build(pattern=PATTERN), Mesh(MeshSizes(dp_shard=2, ep=2), "cpu"), dtype=torch.bfloat16)
    return lines


def test_one_line_of_log_for_each_axis(ranks):
    assert ranks.run(2, log_lines)[0] == [
        "expert parallel: 1 MoE blocks over 2 ranks",
        "data parallel: 1 replicas of 2 shards, experts 1 shards, bfloat16",
    ]


def evaluate(sizes: MeshSizes) -> tuple[float, float]:
    """The loss without and with gradients: evaluation must leave training as it was."""
    mesh, model = Mesh(sizes, "cpu"), initialized(torch.float32, pattern=PATTERN)
    parallelize(model, mesh)
    before = loss_of(model, mesh).detach()
    with torch.no_grad():
        model.eval()
        evaluated = loss_of(model, mesh)
    model.train()
    after = loss_of(model, mesh)
    after.backward()
    assert torch.equal(before, after)
    return all_sum(evaluated, dist.group.WORLD).item()


def test_evaluation_equals_one_rank(ranks):
    one = ranks.run(1, evaluate, MeshSizes())[0]
    assert ranks.run(4, evaluate, LAYOUTS["hsdp2x2xep2"])[0] == pytest.approx(one, rel=1e-6)
