"""Any layout gives one rank's loss, gradients, gradient norm and updates, on the real language model.

Shapes: B batch, S sequence, E experts.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from framework.model import Context
from framework.model.moe import MixtureOfExperts
from framework.optim import ShardedAdamW
from framework.parallelize import parallelize
from parallel import Mesh, MeshSizes, clip_divisor, gradient_norm, set_gradient_sync
from parallel.collectives import all_sum
from tests.helpers.models import MOE, VOCAB, assert_near, gradients_of, initialized, whole

BATCH, SEQ_LEN = 16, 10
NUM_STEPS, CLIP_NORM = 2, 0.5

MODELS = {
    "softmax_topk": dict(pattern="*E*-E"),
    "shared": dict(pattern="*EE", moe=MOE | dict(num_shared_experts=2, shared_expert_router=True, activation="gelu")),
    "topk_softmax": dict(pattern="EE", moe=MOE | dict(router="topk_softmax", capacity_factor=0.75)),
    "loss_free": dict(pattern="EE", moe=MOE | dict(router="sigmoid", selection_bias_rate=0.05, gate_scale=2.0)),
    "expert_choice": dict(pattern="E*E", moe=MOE | dict(router="expert_choice", load_balance_weight=0.0)),
    "forward_balance": dict(pattern="*EE", moe=MOE | dict(load_balance_over="forward", output_norm=True)),
    "mamba": dict(pattern="mEM-", tie_embeddings=True),
    "branches": dict(pattern="[mE]*", norm="layernorm"),
}
LAYOUTS = {
    "dp_shard2": MeshSizes(dp_shard=2),
    "dp_replicate2": MeshSizes(dp_replicate=2),
    "hsdp2x2": MeshSizes(dp_replicate=2, dp_shard=2),
    "ep2": MeshSizes(dp_shard=2, ep=2),
    "ep4": MeshSizes(dp_shard=4, ep=4),
    "dp_shard4xep2": MeshSizes(dp_shard=4, ep=2),
    "hsdp2x2xep2": MeshSizes(dp_replicate=2, dp_shard=2, ep=2),
    "ep8": MeshSizes(dp_shard=8, ep=8),
}


@dataclass
class Run:
    """What two steps gave: per step the loss and the gradient's norm, by name the last gradients and all weights."""

    losses: list[float]
    norms: list[float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    biases: list[Tensor]


def batch(step: int, index: int, count: int) -> tuple[Tensor, Tensor]:
    """The share of a step's sequences that rank `index` of `count` trains on, and its targets, some of them ignored."""
    generator = torch.Generator().manual_seed(step)
    tokens_BS = torch.randint(0, VOCAB, (BATCH, SEQ_LEN + 1), generator=generator)
    targets_BS = tokens_BS[:, 1:].masked_fill(torch.rand(BATCH, SEQ_LEN, generator=generator) < 0.1, -100)
    return tokens_BS[:, :-1].chunk(count)[index], targets_BS.chunk(count)[index]


def accumulate(model: nn.Module, step: int, index: int, count: int, num_micro_batches: int, sync=None) -> Tensor:
    """This rank's share of the loss, with its gradients left in the parameters."""
    num_tokens = sum(int((batch(step, i, count)[1] >= 0).sum()) for i in range(count))
    tokens_BS, targets_BS = batch(step, index, count)
    total = torch.zeros((), dtype=torch.float64)
    pairs = list(zip(tokens_BS.chunk(num_micro_batches), targets_BS.chunk(num_micro_batches), strict=True))
    for position, (tokens, targets) in enumerate(pairs):
        if sync is not None:
            sync(model, position == len(pairs) - 1)
        share = model(tokens, Context(num_sequences=BATCH), targets) / num_tokens
        share.backward()
        total += share.detach()
    return total


def update_biases(model: nn.Module, group: dist.ProcessGroup | None) -> list[Tensor]:
    """The loss-free balance step, from counts of all ranks; the biases after it."""
    biases = []
    for moe in (module for module in model.modules() if isinstance(module, MixtureOfExperts)):
        counts_E = moe.take_statistics()["tokens_per_expert_E"]
        moe.update_selection_bias(counts_E if group is None else all_sum(counts_E, group))
        bias = getattr(moe.router, "selection_bias_E", None)
        biases += [] if bias is None else [bias.clone()]
    return biases


def optimizer_of(model: nn.Module, kind: type = torch.optim.AdamW, fused: bool = False) -> torch.optim.AdamW:
    return kind(model.parameters(), lr=0.02, eps=1e-6, weight_decay=0.1, fused=fused)


def on_one_rank(fields: dict, dtype: torch.dtype, num_micro_batches: int = 1) -> Run:
    """The plain model, PyTorch's own norm: nothing of `parallel` takes part."""
    model = initialized(dtype, **fields)
    optimizer, losses, norms, biases = optimizer_of(model), [], [], []
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        losses.append(accumulate(model, step, 0, 1, num_micro_batches).item())
        norm = nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
        norms.append(norm.item())
        for parameter in model.parameters():  # a fused optimizer divides by a float32, whatever the gradient's dtype
            parameter.grad /= ((norm + 1e-6) / CLIP_NORM).clamp(min=1.0).float()
        optimizer.step()
        biases = update_biases(model, None)
    return Run(losses, norms, *tensors(model), biases)


def on_layout(sizes: MeshSizes, fields: dict, dtype: torch.dtype, num_micro_batches: int, reshard: bool) -> Run | None:
    """The same steps on the ranks of a mesh; rank 0 hands back whole tensors."""
    mesh = Mesh(sizes, "cpu")
    model = parallelize(initialized(dtype, **fields), mesh, dtype=dtype, reshard=reshard)
    index, count = mesh.batch.get_local_rank(), mesh.batch.size()
    optimizer, losses, norms, biases = optimizer_of(model, ShardedAdamW, fused=True), [], [], []
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = accumulate(model, step, index, count, num_micro_batches, set_gradient_sync)
        losses.append(all_sum(loss, mesh.loss.get_group()).item())
        norm = gradient_norm(model.parameters(), mesh)
        norms.append(norm.item())
        optimizer.step(clip_divisor(norm, CLIP_NORM), where=norm.isfinite())
        biases = update_biases(model, dist.group.WORLD)
    run = Run(losses, norms, *tensors(model), biases)
    return run if dist.get_rank() == 0 else None


def tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return gradients_of(model), {name: whole(parameter) for name, parameter in model.named_parameters()}


def assert_equal(got: Run, expected: Run, start: dict[str, Tensor], tolerance: float) -> None:
    assert got.losses == pytest.approx(expected.losses, rel=tolerance)
    assert got.norms == pytest.approx(expected.norms, rel=tolerance)
    assert_near(got.gradients, expected.gradients, tolerance)
    updates, expected_updates = ({name: weight - start[name] for name, weight in run.weights.items()}
                                 for run in (got, expected))
    assert_near(updates, expected_updates, 100 * tolerance)
    for mine, reference in zip(got.biases, expected.biases, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.fixture(scope="module")
def one_rank():
    """Runs of the plain model, each once: (name of the model, dtype, micro-batches) -> (Run, weights at the start)."""
    runs = {}

    def get(name: str, dtype: torch.dtype, num_micro_batches: int = 1) -> tuple[Run, dict[str, Tensor]]:
        key = (name, dtype, num_micro_batches)
        if key not in runs:
            start = {n: p.detach() for n, p in initialized(dtype, **MODELS[name]).named_parameters()}
            runs[key] = on_one_rank(MODELS[name], dtype, num_micro_batches), start
        return runs[key]

    return get


def check(ranks, one_rank, layout: str, name: str, dtype: torch.dtype, tolerance: float, num_micro_batches: int = 1,
          reshard: bool = True) -> None:
    sizes = LAYOUTS[layout]
    got = ranks.run(sizes.world, on_layout, sizes, MODELS[name], dtype, num_micro_batches, reshard)[0]
    assert_equal(got, *one_rank(name, dtype), tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_equals_one_rank_in_float64(ranks, one_rank, layout):
    check(ranks, one_rank, layout, "softmax_topk", torch.float64, 1e-11)


@pytest.mark.parametrize("layout", ["dp_shard2", "ep2", "hsdp2x2xep2"])
def test_layouts_equal_one_rank_in_float32(ranks, one_rank, layout):
    check(ranks, one_rank, layout, "softmax_topk", torch.float32, 1e-4)


@pytest.mark.parametrize("layout", ["ep2", "dp_shard4xep2"])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("softmax_topk", "forward_balance")])
def test_every_kind_of_block_equals_one_rank(ranks, one_rank, layout, name):
    check(ranks, one_rank, layout, name, torch.float64, 1e-11)


@pytest.mark.parametrize("layout", ["ep2", "dp_replicate2", "hsdp2x2xep2"])
def test_balance_over_a_forward_counts_the_tokens_of_all_ranks(ranks, one_rank, layout):
    check(ranks, one_rank, layout, "forward_balance", torch.float64, 1e-11)


@pytest.mark.parametrize("layout", ["dp_shard2", "dp_replicate2", "hsdp2x2xep2"])
@pytest.mark.parametrize("name", ["softmax_topk", "mamba"])
def test_micro_batches_change_nothing(ranks, one_rank, layout, name):
    check(ranks, one_rank, layout, name, torch.float64, 1e-11, num_micro_batches=2)


def test_keeping_gathered_weights_changes_nothing(ranks, one_rank):
    check(ranks, one_rank, "ep2", "mamba", torch.float64, 1e-11, reshard=False)


def first_gradients(fields: dict, dtype: torch.dtype) -> tuple[tuple, tuple]:
    """Loss and gradients of one backward, parallelized on one rank and plain, in the same process."""
    split, plain = (initialized(dtype, **fields) for _ in range(2))
    parallelize(split, Mesh(MeshSizes(), "cpu"), dtype=dtype)
    return tuple((accumulate(model, 0, 0, 1, 2), gradients_of(model)) for model in (split, plain))


@pytest.mark.parametrize("name", MODELS)
def test_on_one_rank_every_bit_is_that_of_the_plain_model(ranks, name):
    (loss, gradients), (plain_loss, plain_gradients) = ranks.run(1, first_gradients, MODELS[name], torch.float32)[0]
    assert torch.equal(loss, plain_loss)
    for parameter, gradient in plain_gradients.items():
        assert torch.equal(gradients[parameter], gradient), parameter


def route_all_to(experts: list[int], sizes: MeshSizes | None) -> dict[str, Tensor] | None:
    """Gradients of a model whose tokens all go to the given experts; sizes None: of the plain model."""
    fields = MODELS["loss_free"]
    model = initialized(**fields)
    for moe in (module for module in model.modules() if isinstance(module, MixtureOfExperts)):
        moe.router.selection_bias_E[experts] = 100.0
    if sizes is None:
        accumulate(model, 0, 0, 1, 1)
        return gradients_of(model)
    mesh = Mesh(sizes, "cpu")
    parallelize(model, mesh, dtype=torch.float64)
    accumulate(model, 0, mesh.batch.get_local_rank(), mesh.batch.size(), 1, set_gradient_sync)
    gradients = gradients_of(model)
    return gradients if dist.get_rank() == 0 else None


@pytest.mark.parametrize("layout", ["ep2", "ep4", "dp_shard4xep2", "ep8"])
def test_experts_and_ranks_without_tokens_get_a_gradient_of_zeros(ranks, layout):
    """Experts 0 and 1 get every token: whole ranks are without rows, and still take part in every exchange."""
    sizes = LAYOUTS[layout]
    got, expected = ranks.run(sizes.world, route_all_to, [0, 1], sizes)[0], route_all_to([0, 1], None)
    for name in [name for name in expected if ".experts." in name]:
        assert not got[name][2:].any() and not expected[name][2:].any()
        got[name], expected[name] = got[name][:2], expected[name][:2]
    assert_near(got, expected, 1e-11)
