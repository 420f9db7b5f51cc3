"""Recomputation changes what is kept, and no result."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import set_checkpoint_early_stop

from framework.model import Context
from framework.parallelize import parallelize
from framework.parallelize.recompute import apply_recompute
from framework.training.checkpoint.state import model_tensors
from framework.training.statistics import ExpertStatistics, layer_name
from kernels.backend import use_backend
from parallel import Mesh, MeshSizes, set_gradient_sync
from tests.helpers.models import MOE, SMALL, VOCAB, gradients_of, initialized

BATCH, SEQ_LEN = 8, 12
HEADS, MAMBA = SMALL["attention"], SMALL["mamba"]
PATTERNS = {"attention": "**", "ffn": "--", "moe": "EE", "mamba1": "mm", "mamba2": "MM", "branches": "[mE]*"}
OPTIONS = {
    "qk_norm_head": dict(pattern="*", attention=HEADS | dict(qk_norm="head", qkv_bias=True, window=4)),
    "qk_norm_full": dict(pattern="*", attention=HEADS | dict(qk_norm="full", rope=False), norm="layernorm"),
    "gelu": dict(pattern="-", ffn=dict(activation="gelu")),
    "relu2": dict(pattern="-E", ffn=dict(activation="relu2"), moe=MOE | dict(activation="relu2", output_norm=True)),
    "capacity": dict(pattern="E", moe=MOE | dict(router="sigmoid", capacity_factor=0.75, shared_expert_router=True)),
    "forward_balance": dict(pattern="EE", moe=MOE | dict(load_balance_over="forward", router="topk_softmax")),
    "expert_choice": dict(pattern="EE", moe=MOE | dict(router="expert_choice", load_balance_weight=0.0)),
    "inner_norms": dict(pattern="m", mamba=MAMBA | dict(inner_norms=True)),
    "groups": dict(pattern="M", mamba=MAMBA | dict(num_groups=2), multipliers=dict(residual=0.5)),
}
PRODUCTS = ("aten.mm.default", "aten.bmm.default", "aten._scaled_dot_product_flash_attention_for_cpu.default")
EXCHANGES = tuple(f"_c10d_functional.{name}.default" for name in (
    "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single", "all_reduce",
))
LAYOUTS = {
    "one": MeshSizes(), "dp_shard2": MeshSizes(dp_shard=2), "ep2": MeshSizes(dp_shard=2, ep=2), "tp2": MeshSizes(tp=2),
    # Experts are sharded on their own here, so that `fully_shard` has hooks within what is repeated.
    "hsdp2x2xep2": MeshSizes(dp_replicate=2, dp_shard=2, ep=2),
}


class Operations(TorchDispatchMode):
    """Watches what operations return: how often each ran, and how many bytes of their results are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.results: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.counts[str(func)] += 1
        storages = [leaf.untyped_storage() for leaf in tree_leaves(out) if type(leaf) is Tensor]
        self.results += [(StorageWeakRef(storage), storage.nbytes()) for storage in storages]
        return out

    def kept_bytes(self) -> int:
        alive = {ref.cdata: num_bytes for ref, num_bytes in self.results if not ref.expired()}
        return sum(alive.values())

    def num(self, *names: str) -> int:
        return sum(self.counts[name] for name in names)


def loss_of(model: nn.Module, micro_batch: int, index: int = 0, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(micro_batch)
    tokens_BS = torch.randint(0, VOCAB, (BATCH, SEQ_LEN + 1), generator=generator).chunk(count)[index]
    return model(tokens_BS[:, :-1], Context(num_sequences=2 * BATCH), tokens_BS[:, 1:]) / (2 * BATCH * SEQ_LEN)


def train(model: nn.Module, index: int = 0, count: int = 1) -> dict[str, Tensor]:
    """Two micro-batches: losses, gradients and statistics, by name."""
    results = {}
    for micro_batch in range(2):
        set_gradient_sync(model, last=micro_batch == 1)
        loss = loss_of(model, micro_batch, index, count)
        loss.backward()
        results[f"loss {micro_batch}"] = loss.detach()
    results |= {f"gradient {name}": gradient for name, gradient in gradients_of(model).items()}
    for name, module in model.named_modules():
        if type(module).__name__ == "MixtureOfExperts":
            results |= {f"{layer_name(name)} {field}": value for field, value in module.take_statistics().items()}
    return results


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize("fields", [dict(pattern=pattern) for pattern in PATTERNS.values()] + list(OPTIONS.values()),
                         ids=[*PATTERNS, *OPTIONS])
def test_every_block_gives_the_same_bits(fields, kind):
    model, reference = initialized(**fields), initialized(**fields)
    apply_recompute(model, kind)
    assert_same(train(model), train(reference))


def test_counts_do_not_rest_on_the_repetition_ending_early():
    """PyTorch ends it at the last tensor that the backward needs, which stands before the counting, now."""
    model, reference = initialized(pattern="E"), initialized(pattern="E")
    apply_recompute(model, "full")
    with set_checkpoint_early_stop(False):
        assert_same(train(model), train(reference))


def work_of(pattern: str, kind: str) -> tuple[int, int]:
    """Bytes that the forward leaves for the backward, and products that the backward takes.

    Not counted are products that are written into given tensors: those of experts on a CPU.
    """
    model = initialized(pattern=pattern)
    apply_recompute(model, kind)
    with Operations() as forward:
        loss = loss_of(model, 0)
        kept_bytes = forward.kept_bytes()
    with Operations() as backward:
        loss.backward()
    return kept_bytes, backward.num(*PRODUCTS)


@pytest.mark.parametrize("block", PATTERNS)
def test_full_keeps_least_and_selective_takes_no_product_twice(block):
    (all_bytes, products), (some_bytes, same_products), (least_bytes, more_products) = (
        work_of(PATTERNS[block], kind) for kind in ("none", "selective", "full")
    )
    assert least_bytes < some_bytes < all_bytes
    assert products == same_products < more_products


def test_names_are_those_of_the_plain_model():
    model, reference = initialized(pattern="[mE]*"), initialized(pattern="[mE]*")
    apply_recompute(model, "full")
    assert model_tensors(model).keys() == model_tensors(reference).keys()
    assert ExpertStatistics(model).layers.keys() == ExpertStatistics(reference).layers.keys() != set()
    assert model.new_cache(1, 4, torch.device("cpu"), torch.float32)


def train_each_way(sizes: MeshSizes) -> list[tuple[dict[str, Tensor], int]]:
    """With each kind what `train` gives, and the exchanges of its backwards and forwards."""
    results = []
    for kind in ("none", "selective", "full"):
        mesh = Mesh(sizes, "cpu")
        model = parallelize(initialized(pattern="[mE]*-M"), mesh, dtype=torch.float64, recompute=kind)
        with Operations() as operations:
            got = train(model, mesh.batch.get_local_rank(), mesh.batch.size())
        results.append((got, operations.num(*EXCHANGES)))
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits_and_selective_exchanges_nothing_twice(ranks, layout):
    sizes = LAYOUTS[layout]
    for (expected, num), (selective, same_num), (full, larger_num) in ranks.run(sizes.world, train_each_way, sizes):
        assert_same(selective, expected)
        assert_same(full, expected)
        assert num == same_num
        assert larger_num > num or sizes.tp == sizes.ep == 1


def step_in_triton(kind: str) -> tuple[dict[str, Tensor], Counter]:
    """Gradients of a model with experts and both scans, whose kernels run in Triton, and which operators ran."""
    model, operations = initialized(torch.float32, pattern="EmM"), Operations()
    apply_recompute(model, kind)
    tokens_BS = torch.randint(VOCAB, (1, 6), generator=torch.Generator().manual_seed(0))
    with use_backend("triton"), operations:
        model(tokens_BS, Context(num_sequences=1), tokens_BS).backward()
    return gradients_of(model), operations.counts


def test_tritons_products_and_scans_are_kept_and_its_gradients_stay():
    expected, once = step_in_triton("none")
    kept, selective = step_in_triton("selective")
    repeated, full = step_in_triton("full")
    for name, gradient in expected.items():
        assert torch.equal(gradient, kept[name]) and torch.equal(gradient, repeated[name]), name
    for name, times in {"expert_ffn": 1, "ssd": 1, "selective_scan": 1, "route": 2, "gated_rms_norm": 2}.items():
        operator = f"upmix.{name}.default"
        assert (once[operator], selective[operator], full[operator]) == (1, times, 2), name
