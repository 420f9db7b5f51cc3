"""Ranks that split heads, channels, vocabulary and sequence give one rank's loss and every parameter's gradient.

Shapes: B batch, S sequence, V vocabulary.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from framework.model import Context, LanguageModel
from framework.parallelize.data import apply_data_parallelism
from framework.parallelize.expert import apply_expert_parallelism
from framework.parallelize.tensor import apply_tensor_parallelism
from framework.parametrization import initialize
from framework.recipe.schema import Init
from parallel import Mesh, MeshSizes, set_gradient_sync
from parallel.collectives import all_sum
from tests.helpers.models import MOE, VOCAB, assert_same_step, build, gradients_of, initialized, log_of, whole

BATCH, SEQ_LEN = 4, 8

MODELS = {
    # Key-value heads 4, 2, 1, and 3 whose groups of 4 query heads start and end within ranks.
    "attention": dict(
        pattern="*ABC-D", ffn=dict(activation="gelu"),
        multipliers=dict(logits=0.5, embedding=2.0),
        sublayers=dict(
            A=dict(kind="attention", num_kv_heads=2, qk_norm="head", qkv_bias=True),
            B=dict(kind="attention", num_kv_heads=1, qk_norm="full", rope_fraction=0.5, qkv_bias=True),
            C=dict(kind="attention", qk_norm="full", qkv_bias=True, window=3),
            D=dict(kind="attention", num_heads=12, head_dim=4, num_kv_heads=3, qk_norm="full"),
        ),
    ),
    "moe": dict(pattern="*E-F", tie_embeddings=True, norm="layernorm", moe=MOE | dict(shared_expert_router=True),
                sublayers=dict(F=dict(kind="moe", output_norm=True, load_balance_over="forward", activation="gelu"))),
    "mamba1": dict(pattern="mn", sublayers=dict(n=dict(kind="mamba1", inner_norms=True))),
    # Groups 1, 2, 4, and 3 that ranks of 12 heads hold parts of.
    "mamba2": dict(
        pattern="MABC", mamba=dict(head_dim=4, d_state=4, num_groups=1),
        sublayers=dict(
            A=dict(kind="mamba2", num_groups=2), B=dict(kind="mamba2", num_groups=4),
            C=dict(kind="mamba2", num_groups=3, expand=3.0),
        ),
    ),
    "branches": dict(pattern="[mE]*", tie_embeddings=True),
}
TP2, TP4 = MeshSizes(tp=2), MeshSizes(tp=4)
MIXED = [
    (MeshSizes(dp_shard=2, tp=2), "attention"), (MeshSizes(dp_replicate=2, tp=2), "mamba2"),
    (MeshSizes(dp_shard=2, tp=2), "mamba1"), (MeshSizes(dp_replicate=2, tp=2), "branches"),
    (MeshSizes(tp=2, ep=2), "moe"), (MeshSizes(dp_shard=2, tp=2, ep=4), "moe"),
]


def batch(index: int, count: int) -> tuple[Tensor, Tensor, Context]:
    """The share of rank `index` of `count`: tokens, targets of which some are ignored, two documents in a sequence."""
    generator = torch.Generator().manual_seed(5)
    tokens_BS = torch.randint(0, VOCAB, (BATCH, SEQ_LEN + 1), generator=generator)
    targets_BS = tokens_BS[:, 1:].masked_fill(torch.rand(BATCH, SEQ_LEN, generator=generator) < 0.2, -100)
    start_B1 = torch.randint(1, SEQ_LEN, (BATCH, 1), generator=generator)
    place_S = torch.arange(SEQ_LEN)
    document_BS = (place_S >= start_B1).long()
    position_BS = place_S - document_BS * start_B1
    tokens_BS, targets_BS, position_BS, document_BS = (
        whole.chunk(count)[index] for whole in (tokens_BS[:, :-1], targets_BS, position_BS, document_BS)
    )
    return tokens_BS, targets_BS, Context(position_BS, document_BS, num_sequences=BATCH)


def backward(model: nn.Module, index: int = 0, count: int = 1) -> float:
    tokens_BS, targets_BS, context = batch(index, count)
    loss = model(tokens_BS, context, targets_BS)
    (loss / (BATCH * SEQ_LEN)).backward()
    return loss.item()


def no_gradient_is_partial(model: nn.Module) -> bool:
    """An optimizer reads the local gradient: a term of a sum would be used as if it were the sum."""
    return not any(place.is_partial() for p in model.parameters() for place in p.grad.placements)


def split(model: LanguageModel, mesh: Mesh, dtype: torch.dtype = torch.float64, recompute: bool = False) -> None:
    apply_tensor_parallelism(model, mesh)
    apply_expert_parallelism(model, mesh)
    if recompute:
        for layer in model.layers.values():
            layer.block = checkpoint_wrapper(layer.block)
    apply_data_parallelism(model, mesh, dtype, reshard=True)


def on_layout(sizes: MeshSizes, fields: dict, dtype: torch.dtype, recompute: bool = False) -> tuple[float, dict]:
    """This rank's number for the loss of the whole batch, and whole gradients."""
    mesh = Mesh(sizes, "cpu")
    model = initialized(torch.float32 if dtype == torch.bfloat16 else dtype, **fields)
    split(model, mesh, dtype, recompute)
    loss = torch.tensor(backward(model, mesh.batch.get_local_rank(), mesh.batch.size()), dtype=torch.float64)
    assert no_gradient_is_partial(model)
    return all_sum(loss, mesh.loss.get_group()).item(), gradients_of(model)


@pytest.fixture(scope="module")
def one_rank():
    """(loss, gradients) of the plain model in float64, each computed once."""
    runs = {}

    def get(name: str) -> tuple[float, dict[str, Tensor]]:
        if name not in runs:
            model = initialized(**MODELS[name])
            runs[name] = backward(model), gradients_of(model)
        return runs[name]

    return get


def check(results: list, expected: tuple[float, dict]) -> None:
    """Every rank knows the same loss and, put together, the same gradients."""
    for got in results:
        assert_same_step(got, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [TP2, TP4], ids=["tp2", "tp4"])
def test_every_block_equals_one_rank(ranks, one_rank, sizes, name):
    check(ranks.run(sizes.world, on_layout, sizes, MODELS[name], torch.float64), one_rank(name))


@pytest.mark.parametrize(("sizes", "name"), MIXED)
def test_with_data_and_expert_parallelism(ranks, one_rank, sizes, name):
    check(ranks.run(sizes.world, on_layout, sizes, MODELS[name], torch.float64), one_rank(name))


def test_recomputed_blocks_gather_and_scatter_again(ranks):
    check(ranks.run(2, on_layout, TP2, MODELS["branches"] | dict(pattern="mE*"), torch.float64, True),
          ranks.run(1, on_layout, MeshSizes(), MODELS["branches"] | dict(pattern="mE*"), torch.float64)[0])


@pytest.mark.parametrize("name", ["attention", "mamba1", "mamba2"])
def test_bfloat16_is_as_near_as_on_one_rank(ranks, one_rank, name):
    loss, gradients = one_rank(name)
    _, rounded = ranks.run(1, on_layout, MeshSizes(), MODELS[name], torch.bfloat16)[0]
    for got, near in ranks.run(2, on_layout, TP2, MODELS[name], torch.bfloat16):
        assert got == pytest.approx(loss, rel=2e-3)
        for parameter, gradient in gradients.items():
            error, usual = ((g[parameter] - gradient).norm() / gradient.norm() for g in (near, rounded))
            assert error < 0.02 + 1.5 * usual, f"{parameter}: {error}, on one rank {usual}"


def in_micro_batches(sizes: MeshSizes, fields: dict) -> tuple[float, dict]:
    mesh, model, losses = Mesh(sizes, "cpu"), initialized(**fields), []
    split(model, mesh)
    for index in range(2):
        set_gradient_sync(model, index == 1)
        losses.append(backward(model, index, 2))
    return sum(losses), gradients_of(model)


def test_micro_batches_change_nothing(ranks, one_rank):
    check(ranks.run(2, in_micro_batches, TP2, MODELS["mamba2"]), one_rank("mamba2"))


def evaluate(sizes: MeshSizes, fields: dict) -> tuple[Tensor, Tensor]:
    model = initialized(**fields).eval()
    if sizes.world > 1:
        split(model, Mesh(sizes, "cpu"))
    tokens_BS, targets_BS, context = batch(0, 1)
    with torch.no_grad():
        return model(tokens_BS, context), model(tokens_BS, context, targets_BS)


def test_logits_are_whole_on_every_rank(ranks):
    expected, loss = evaluate(MeshSizes(), MODELS["attention"])
    assert expected.shape == (BATCH, SEQ_LEN, VOCAB)
    for logits_BSV, got in ranks.run(4, evaluate, TP4, MODELS["attention"]):
        torch.testing.assert_close(logits_BSV, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(got, loss, rtol=1e-12, atol=0)


def start_from_meta(sizes: MeshSizes, fields: dict) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = build(**fields)
    split(model, Mesh(sizes, "cpu"), torch.float32)
    model.to_empty(device="cpu")
    initialize(model, Init(), seed=3)
    return {name: whole(parameter) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("sizes", "name"), [
    (TP4, "mamba2"), (MeshSizes(dp_shard=2, tp=2), "attention"), (MeshSizes(dp_shard=2, tp=2), "moe"),
    (MeshSizes(dp_shard=2, tp=2), "mamba1"), (MeshSizes(dp_replicate=2, tp=2), "attention"),
])
def test_every_layout_starts_from_the_same_values(ranks, sizes, name):
    plain = build(**MODELS[name])
    initialize(plain, Init(), seed=3)
    for got in ranks.run(sizes.world, start_from_meta, sizes, MODELS[name]):
        assert got.keys() == dict(plain.named_parameters()).keys()
        for parameter, tensor in plain.named_parameters():
            assert torch.equal(got[parameter], tensor), parameter


def local_numbers(fields: dict) -> dict[str, int]:
    model = build(**fields)
    apply_tensor_parallelism(model, Mesh(TP4, "cpu"))
    return {name: parameter.to_local().numel() for name, parameter in model.named_parameters()}


def test_a_rank_holds_its_part_of_every_large_parameter(ranks):
    """And of the others, those that every rank needs whole, all of it."""
    fields = MODELS["mamba2"] | dict(pattern="MB-*", attention=dict(num_heads=4, num_kv_heads=2))
    kept_whole = {f"layers.0.block.{name}" for name in ("B.weight", "C.weight", "conv_B.weight", "conv_B.bias",
                                                       "conv_C.weight", "conv_C.bias")}
    kept_whole |= {f"layers.{layer}.norm.weight" for layer in range(4)}
    kept_whole |= {"layers.3.block.k.weight", "layers.3.block.v.weight", "final_norm.weight"}
    sizes = {name: parameter.numel() for name, parameter in build(**fields).named_parameters()}
    for rank, numbers in enumerate(ranks.run(4, local_numbers, fields)):
        for name, number in numbers.items():
            vocabulary = (11, 11, 11, 10)[rank] * 16
            expected = vocabulary if "embedding" in name else sizes[name] // (1 if name in kept_whole else 4)
            assert number == expected, name


def refusal(fields: dict) -> str:
    with pytest.raises(ValueError) as error:
        apply_tensor_parallelism(build(**fields), Mesh(TP4, "cpu"))
    return str(error.value)


@pytest.mark.parametrize(("fields", "message"), [
    (dict(pattern="*", attention=dict(num_heads=2)), "tp=4 must divide the 2 query heads"),
    (dict(pattern="-", ffn=dict(d_ff=30)), "tp=4 must divide the 30 feed-forward channels"),
    (dict(pattern="m", mamba=dict(expand=1.125)), "tp=4 must divide the 18 Mamba-1 channels"),
    (dict(pattern="M", mamba=dict(head_dim=16)), "tp=4 must divide the 2 Mamba-2 heads"),
    (dict(pattern="E", moe=MOE | dict(d_expert=6)), "tp=4 must divide the 6 feed-forward channels"),
])
def test_sizes_that_do_not_divide_are_refused(ranks, fields, message):
    assert ranks.run(4, refusal, fields)[0] == message


def forward_of(num_tokens: int) -> str:
    model = build(pattern="-")
    initialize(model, Init(), seed=0)
    split(model, Mesh(TP2, "cpu"), torch.float32)
    with pytest.raises(ValueError) as error:
        model(torch.zeros(1, num_tokens, dtype=torch.long), Context())
    return str(error.value)


def test_a_sequence_that_does_not_divide_is_refused(ranks):
    assert ranks.run(2, forward_of, 7)[0] == "tp=2 must divide the sequence of 7 tokens that its ranks share"


def stage(sizes: MeshSizes) -> tuple[tuple[int, ...], list[str]]:
    """A middle stage of a pipeline, without embedding, final norm and unembedding."""
    model = initialized(pattern="*-")
    model.embedding = model.final_norm = model.unembedding = None
    with log_of("framework.parallelize.tensor") as lines:
        apply_tensor_parallelism(model, Mesh(sizes, "cpu"))
    x_BSD = torch.ones(2, 3, 16, dtype=torch.float64)
    for layer in model.layers.values():
        x_BSD = layer(x_BSD, Context())
    return tuple(x_BSD.shape), lines


def test_a_stage_without_embedding_and_unembedding_keeps_its_part_of_the_sequence(ranks):
    shape, lines = ranks.run(2, stage, TP2)[0]
    assert shape == (2, 3, 16)
    assert lines == ["tensor and sequence parallel: 2 blocks over 2 ranks"]
