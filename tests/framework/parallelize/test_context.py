"""Ranks that hold parts of each sequence give one rank's loss and every parameter's gradient.

B batch, S sequence.
"""

import pytest
import torch
from torch import Tensor, nn

from framework.model import Context
from framework.parallelize import parallelize
from framework.parallelize.context import apply_context_parallelism
from parallel import Mesh, MeshSizes, RankPool, set_gradient_sync
from parallel.collectives import all_sum
from parallel.context import state_passing
from tests.helpers.models import VOCAB, assert_same_step, build, gradients_of, initialized, log_of

BATCH, SEQ_LEN = 4, 24

MODELS = {
    # On 2 ranks key-value heads 4, 2 and 1 for 4 query heads; `D` has too few for 4 ranks.
    "attention": dict(
        pattern="*ABC-D",
        sublayers=dict(
            A=dict(kind="attention", num_kv_heads=2, qk_norm="head"),
            B=dict(kind="attention", num_kv_heads=1, window=5),
            C=dict(kind="attention", num_heads=8, head_dim=2, num_kv_heads=2, window=20),
            D=dict(kind="attention", num_heads=6, head_dim=4, num_kv_heads=2),
        ),
    ),
    "ring": dict(
        pattern="*AB-", attention=dict(num_heads=3, head_dim=4),
        sublayers=dict(
            A=dict(kind="attention", num_heads=3, head_dim=4, num_kv_heads=1, window=9),
            B=dict(kind="attention", num_heads=1, head_dim=4, rope_fraction=0.5),
        ),
    ),
    "mamba1": dict(pattern="mnm", mamba=dict(d_state=4, chunk_size=8), tie_embeddings=True,
                   sublayers=dict(n=dict(kind="mamba1", inner_norms=True, d_conv=2))),
    "mamba2": dict(pattern="MAM", mamba=dict(head_dim=4, d_state=4, num_groups=1, chunk_size=4),
                   sublayers=dict(A=dict(kind="mamba2", num_groups=2, d_conv=7))),
    "hybrid": dict(pattern="M[mE]*"),
}
CP2, CP4 = MeshSizes(cp=2), MeshSizes(cp=4)


def batch(documents: bool, index: int = 0, count: int = 1) -> tuple[Tensor, Tensor, Context]:
    """The share of rank `index` of `count`, whole sequences: one document in the first, others that end at borders of
    2 and of 4 parts, one token after and before them, and elsewhere. A few targets are ignored."""
    generator = torch.Generator().manual_seed(5)
    tokens_BS = torch.randint(0, VOCAB, (BATCH, SEQ_LEN + 1), generator=generator)
    targets_BS = tokens_BS[:, 1:].masked_fill(torch.rand(BATCH, SEQ_LEN, generator=generator) < 0.2, -100)
    document_BS = torch.zeros(BATCH, SEQ_LEN, dtype=torch.int64)
    for row, starts in zip(document_BS, ([], [12, 18], [3, 11, 13, 17], [6, 7, 20]), strict=True):
        row[starts] = 1
    document_BS = document_BS.cumsum(1)
    tokens_BS, targets_BS, document_BS = (x.chunk(count)[index] for x in (tokens_BS[:, :-1], targets_BS, document_BS))
    return tokens_BS, targets_BS, Context(document_BS=document_BS if documents else None, num_sequences=BATCH)


def backward(model: nn.Module, documents: bool, index: int = 0, count: int = 1) -> Tensor:
    tokens_BS, targets_BS, context = batch(documents, index, count)
    loss = model(tokens_BS, context, targets_BS=targets_BS)
    (loss / (BATCH * SEQ_LEN)).backward()
    return loss.detach()


def on_layout(sizes: MeshSizes, fields: dict, documents: bool, recompute: str = "none") -> tuple[float, dict]:
    """The loss of the whole batch and whole gradients."""
    mesh = Mesh(sizes, "cpu")
    model = parallelize(initialized(**fields), mesh, dtype=torch.float64, recompute=recompute)
    set_gradient_sync(model, True)
    loss = backward(model, documents, mesh.batch.get_local_rank(), mesh.batch.size())
    return all_sum(loss, mesh.loss.get_group()).item(), gradients_of(model)


@pytest.fixture(scope="module")
def one_rank():
    """(loss, gradients) of the plain model, each computed once."""
    runs = {}

    def get(name: str, documents: bool) -> tuple[float, dict[str, Tensor]]:
        if (name, documents) not in runs:
            model = initialized(**MODELS[name])
            runs[name, documents] = backward(model, documents).item(), gradients_of(model)
        return runs[name, documents]

    return get


def check(ranks: RankPool, one_rank, sizes: MeshSizes, name: str, documents: bool, recompute: str = "none") -> None:
    got = ranks.run(sizes.world, on_layout, sizes, MODELS[name], documents, recompute)[0]
    assert_same_step(got, one_rank(name, documents))


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("sizes", [CP2, CP4], ids=["cp2", "cp4"])
@pytest.mark.parametrize("name", MODELS)
def test_every_block_equals_one_rank(ranks, one_rank, sizes, name, documents):
    check(ranks, one_rank, sizes, name, documents)


@pytest.mark.parametrize(("sizes", "name"), [
    (MeshSizes(dp_shard=2, cp=2), "mamba1"), (MeshSizes(dp_replicate=2, cp=2), "ring"),
    (MeshSizes(cp=2, tp=2), "mamba2"), (MeshSizes(cp=2, tp=2), "attention"), (MeshSizes(cp=2, tp=2), "hybrid"),
    (MeshSizes(cp=2, ep=2), "hybrid"), (MeshSizes(dp_shard=2, cp=2, ep=4), "hybrid"),
])
def test_with_the_other_axes(ranks, one_rank, sizes, name):
    check(ranks, one_rank, sizes, name, True)


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("name", ["ring", "hybrid"])
def test_recomputed_blocks_exchange_again(ranks, one_rank, name, recompute):
    check(ranks, one_rank, CP2, name, True, recompute)


def without_hand_over(*args) -> tuple[float, dict]:
    original = state_passing.pass_states
    state_passing.pass_states = lambda leaving, *_: (torch.zeros_like(leaving), leaving)
    try:
        return on_layout(*args)
    finally:
        state_passing.pass_states = original


@pytest.mark.parametrize("name", ["mamba1", "mamba2"])
def test_the_comparison_notices_a_state_that_is_not_handed_over(ranks, one_rank, name):
    got = ranks.run(2, without_hand_over, CP2, MODELS[name], False)[0]
    with pytest.raises(AssertionError):
        assert_same_step(got, one_rank(name, False))


def saved_activations(sizes: MeshSizes, fields: dict, seq_len: int) -> tuple[int, set[int]]:
    """Bytes of activations that a backward waits for, and all the sizes that any dim of them has."""
    mesh, model = Mesh(sizes, "cpu"), initialized(**fields)
    apply_context_parallelism(model, mesh)
    weights, saved = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens_BS = torch.zeros(1, seq_len, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens_BS, Context(document_BS=torch.zeros_like(tokens_BS)), tokens_BS).backward()
    return sum(x.untyped_storage().nbytes() for x in saved.values()), {n for x in saved.values() for n in x.shape}


@pytest.mark.parametrize("name", ["mamba1", "mamba2", "ring"])
def test_a_rank_keeps_a_quarter_of_the_activations(ranks, name):
    """So that a sequence may be longer than one rank's memory; states and weights do not grow with it."""
    whole, sizes = ranks.run(1, saved_activations, MeshSizes(), MODELS[name], 808)[0]
    assert 808 in sizes
    for part, sizes in ranks.run(4, saved_activations, CP4, MODELS[name], 808):
        assert 202 in sizes and 808 not in sizes
        assert part < 0.3 * whole


def logits(sizes: MeshSizes) -> Tensor:
    mesh, model = Mesh(sizes, "cpu"), initialized(pattern="M*m")
    apply_context_parallelism(model, mesh)
    tokens_BS, _, context = batch(True)
    position_BS = torch.arange(SEQ_LEN).expand(BATCH, -1) + 3 * torch.arange(BATCH)[:, None]
    with torch.no_grad():
        return model(tokens_BS, Context(position_BS, context.document_BS))


def test_without_targets_come_the_logits_of_the_own_part_at_given_positions(ranks):
    torch.testing.assert_close(torch.cat(ranks.run(2, logits, CP2), 1), ranks.run(1, logits, MeshSizes())[0],
                               rtol=1e-10, atol=1e-10)


def refusal(sizes: MeshSizes, seq_len: int) -> str:
    model = build(pattern="m")
    apply_context_parallelism(model, Mesh(sizes, "cpu"))
    with pytest.raises(ValueError) as error:
        model(torch.zeros(1, seq_len, dtype=torch.long), Context())
    return str(error.value)


@pytest.mark.parametrize(("sizes", "seq_len", "message"), [
    (CP2, 7, "cp=2 must divide the 7 tokens of a sequence"),
    (MeshSizes(cp=2, tp=2), 6, "cp*tp=2*2 must divide the 6 tokens of a sequence"),
    (CP4, 8, "2 tokens on each of cp=4 ranks, but the convolution reaches back 3"),
])
def test_sequences_that_cannot_be_split_are_refused(ranks, sizes, seq_len, message):
    assert ranks.run(sizes.world, refusal, sizes, seq_len)[0] == message


def log_lines(sizes: MeshSizes) -> list[str]:
    with log_of("framework.parallelize.context") as lines:
        for pattern in ("*A*Mm-", "-"):
            model = build(pattern=pattern, sublayers=dict(A=dict(kind="attention", num_heads=1)))
            apply_context_parallelism(model, Mesh(sizes, "cpu"))
    return lines


def test_the_log_names_how_blocks_reach_across(ranks):
    assert ranks.run(2, log_lines, CP2)[0] == [
        "context parallel: sequences in 2 parts, 2 x all-to-all over heads, 1 x ring attention, 2 x state passing",
        "context parallel: sequences in 2 parts, nothing mixes tokens",
    ]
    assert ranks.run(1, log_lines, MeshSizes())[0] == []
