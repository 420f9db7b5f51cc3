"""Compiled blocks: what is compiled, how often, and that nothing comes out differently."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from framework.model import Context, LanguageModel
from framework.parallelize.compile import apply_compile
from framework.parallelize.data import apply_data_parallelism
from framework.parallelize.expert import apply_expert_parallelism
from framework.parallelize.recompute import apply_recompute
from framework.parallelize.tensor import apply_tensor_parallelism
from parallel import Mesh, MeshSizes
from tests.helpers.models import VOCAB, assert_near, gradients_of, initialized

BATCH, SEQ_LEN = 16, 8
LAYOUTS = {"one": MeshSizes(), "dp_shard2": MeshSizes(dp_shard=2), "tp2": MeshSizes(tp=2)}
# Attention, dense FFN and shared experts: what is compiled, each of one kind.
PATTERN, NUM_KINDS = "(*-)x5*E", 3


def loss_of(model: LanguageModel, batch_size: int, index: int = 0, count: int = 1, documents: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(0, VOCAB, (batch_size, SEQ_LEN + 1), generator=generator).chunk(count)[index]
    document_BS = torch.arange(SEQ_LEN).expand(len(tokens_BS), -1) // 3 if documents else None
    context = Context(document_BS=document_BS, num_sequences=batch_size)
    return model(tokens_BS[:, :-1], context, tokens_BS[:, 1:]) / (batch_size * SEQ_LEN)


def gradients(model: LanguageModel, *batch: int, documents: bool = False) -> dict[str, Tensor]:
    loss_of(model, *batch, documents=documents).backward()
    return gradients_of(model)


def train_compiled(
    sizes: MeshSizes, pattern: str, recompute: str, backend: str = "aot_eager", dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Tensor], int]:
    """Gradients on a layout, and how many graphs were compiled for the whole model."""
    torch._dynamo.reset()
    counters.clear()
    mesh, model = Mesh(sizes, "cpu"), initialized(dtype, pattern=pattern)
    apply_tensor_parallelism(model, mesh)
    apply_expert_parallelism(model, mesh, False)
    apply_recompute(model, recompute)
    apply_compile(model, backend)
    apply_data_parallelism(model, mesh, dtype, True)
    got = gradients(model, BATCH, mesh.batch.get_local_rank(), mesh.batch.size())
    return got, counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("layout, recompute", [
    ("one", "none"), ("one", "full"), ("dp_shard2", "none"), ("dp_shard2", "selective"), ("tp2", "none"),
])
def test_layers_of_equal_blocks_share_one_compilation(ranks, layout, recompute):
    """PyTorch compiles a function eight times by default, and would leave the rest of 12 layers as they are."""
    sizes = LAYOUTS[layout]
    got, num_graphs = ranks.run(sizes.world, train_compiled, sizes, PATTERN, recompute, timeout=300)[0]
    assert num_graphs == NUM_KINDS
    assert_near(got, gradients(initialized(pattern=PATTERN), BATCH), 1e-11)


def test_inductor_gives_the_same_gradients(ranks):
    """In float32: for attention in float64 the inductor of PyTorch 2.11 makes code that does not run on a CPU."""
    arguments = (LAYOUTS["dp_shard2"], "*-", "selective", "inductor", torch.float32)
    got, _ = ranks.run(2, train_compiled, *arguments, timeout=300)[0]
    assert_near(got, gradients(initialized(torch.float32, pattern="*-"), BATCH), 1e-4)


OPTIONS = {
    "window": dict(attention=dict(num_heads=4, num_kv_heads=2, window=4, qk_norm="head", qkv_bias=True)),
    "no_positions": dict(attention=dict(num_heads=2, rope=False, qk_norm="full"), ffn=dict(activation="relu2")),
    "gelu": dict(attention=dict(num_heads=2, rope_fraction=0.5), ffn=dict(activation="gelu")),
}


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_blocks_compile_as_a_whole_whatever_their_options(name, documents):
    """The compiler would raise an error at the first thing that it must leave to Python."""
    torch._dynamo.reset()
    model, reference = (initialized(pattern="*-", **OPTIONS[name]) for _ in range(2))
    apply_compile(model, "aot_eager")
    expected = gradients(reference, BATCH, documents=documents)
    assert_near(gradients(model, BATCH, documents=documents), expected, 1e-11)


def test_other_batches_and_evaluation_compile_a_few_times_more():
    torch._dynamo.reset()
    counters.clear()
    model = initialized(pattern="(*-)x2")
    apply_compile(model, "aot_eager")
    for batch_size in (4, 3, 2, 5):
        loss_of(model, batch_size).backward()
        with torch.no_grad():
            loss_of(model, batch_size)
    assert counters["stats"]["unique_graphs"] == 2 * 4


def test_mamba_and_mixtures_stay_eager():
    model = initialized(pattern="*-EmM")
    apply_compile(model, "aot_eager")
    compiled = [name for name, module in model.named_modules() if "forward" in module.__dict__]
    assert compiled == ["layers.0.block", "layers.1.block", "layers.2.block.shared"]
