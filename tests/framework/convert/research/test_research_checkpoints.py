"""Models of llm-random and nano, as their own code saves them, give the same logits as runs of ours."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from framework.convert.research import from_llm_random, from_nano
from framework.model import Context
from framework.training import load_run
from tests.helpers.conversion import assert_bit_equal, weights_of, write
from tests.helpers.research_cases import LIZRD, NANO, attention, lizrd, made, save, save_sharded
from tests.helpers.research_models import HEADS, VOCAB, lizrd_dense


def assert_same_logits(run: Path, model: nn.Module) -> None:
    """On random tokens, within 1e-5 of the largest, which is not small; and they tell tokens apart."""
    tokens_BS = torch.randint(VOCAB, (2, 19), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ours, theirs = load_run(run).model(tokens_BS, Context()), model(tokens_BS)
    scale = theirs.abs().max()
    assert scale > 0.3 and theirs.std(-1).min() > 0.05
    assert (ours - theirs).abs().max() <= 1e-5 * scale, float((ours - theirs).abs().max() / scale)


@pytest.mark.parametrize("case", LIZRD)
def test_llm_random(case, tmp_path):
    make, pattern, stated = LIZRD[case]
    model = made(make)
    report = from_llm_random(save(model, tmp_path / "7.pt"), tmp_path / "run", stated)
    assert (report["pattern"], report["step"], report["has_data"]) == (pattern, 0, False)
    assert_same_logits(tmp_path / "run", model)


@pytest.mark.parametrize("case", NANO)
def test_nano(case, tmp_path):
    make, pattern, stated = NANO[case]
    model = made(make)
    torch.save({"model": model.state_dict(), "optim": None, "scheduler": {}}, tmp_path / "model.pt")
    assert from_nano(tmp_path / "model.pt", tmp_path / "run", stated)["pattern"] == pattern
    assert_same_logits(tmp_path / "run", model)


def test_what_their_code_means_is_in_the_recipe(tmp_path):
    make, _, stated = LIZRD["relu experts"]
    from_llm_random(save(made(make), tmp_path / "7.pt"), tmp_path / "run", stated)
    model = load_run(tmp_path / "run").loaded.recipe.model
    assert (model.norm, model.norm_eps, model.attention.rope_base) == ("layernorm", 1e-5, 10000.0)
    assert (model.moe.router, model.moe.normalize_top_k, model.moe.activation) == ("softmax_topk", False, "relu")
    assert (model.moe.num_experts, model.moe.top_k, model.moe.capacity_factor) == (6, 2, 1.25)
    assert (model.attention.num_heads, model.tie_embeddings) == (HEADS, False)


def test_nano_sharded(tmp_path):
    make, _, stated = NANO["grouped, gated, scaled"]
    model = made(make)
    report = from_nano(save_sharded(model, tmp_path / "step_3"), tmp_path / "run", stated)
    assert report["num_tensors"] == len(model.state_dict())
    assert_same_logits(tmp_path / "run", model)


class InParts(dcp.DefaultSavePlanner):
    """Writes each tensor in parts of at most 7 rows, as ranks of sharded training do."""

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([
            WriteItem(MetadataIndex(name, torch.Size([start, *[0] * (tensor.ndim - 1)])), WriteItemType.SHARD,
                      tensor_data=TensorWriteData(
                          ChunkStorageMetadata(torch.Size([start, *[0] * (tensor.ndim - 1)]), rows.shape),
                          TensorProperties(tensor.dtype), tensor.shape))
            for name, tensor in self.state_dict.items()
            for start, rows in zip(range(0, len(tensor), 7), tensor.split(7), strict=True)])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn][index.offset[0] :][:7].clone()


def test_nano_sharded_in_parts(tmp_path):
    make, _, stated = NANO["experts"]
    model = made(make)
    dcp.save({f"app.model.{name}": tensor for name, tensor in model.state_dict().items()},
             checkpoint_id=tmp_path / "step_3", planner=InParts(flatten_state_dict=False), no_dist=True)
    from_nano(tmp_path / "step_3", tmp_path / "run", stated)
    assert_same_logits(tmp_path / "run", model)


@pytest.mark.parametrize("wrap", ["module.{}", "module._orig_mod.{}", "{}"])
def test_wrappers_in_names_and_a_bare_state_dict(wrap, tmp_path):
    make, _, stated = LIZRD["dense"]
    model = made(make)
    torch.save({wrap.format(name): tensor for name, tensor in model.state_dict().items()}, tmp_path / "7.pt")
    from_llm_random(tmp_path / "7.pt", tmp_path / "run", stated)
    assert_same_logits(tmp_path / "run", model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_it_is(dtype, tmp_path):
    make, _, stated = NANO["buffers tell heads"]
    model = made(make)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    torch.save({name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, tmp_path / "half.pt")
    from_nano(tmp_path / "half.pt", tmp_path / "run", stated)
    assert_same_logits(tmp_path / "run", model)


def test_one_matrix_at_both_ends_is_tied(tmp_path):
    make, _, stated = NANO["dense"]
    model = made(make)
    model.head.linear.weight = model.embedding.embedding.embedding.weight
    torch.save(model.state_dict(), tmp_path / "tied.pt")
    from_nano(tmp_path / "tied.pt", tmp_path / "run", stated)
    assert load_run(tmp_path / "run").loaded.recipe.model.tie_embeddings
    assert_same_logits(tmp_path / "run", model)


def test_zero_biases_are_as_good_as_none(tmp_path):
    model = made(lambda: lizrd("layernorm", attention=attention(), feedforward=lambda: lizrd_dense(True)))
    for name, parameter in model.named_parameters():
        if "relu.bias" in name:
            nn.init.zeros_(parameter)
    from_llm_random(save(model, tmp_path / "7.pt"), tmp_path / "run")
    assert_same_logits(tmp_path / "run", model)


def test_both_ways_of_keeping_queries_are_the_same_model(tmp_path):
    """Rows of one stacked matrix, or of three that are stacked later."""
    model = made(LIZRD["dense"][0])
    state = model.state_dict()
    apart = {}
    for name, tensor in state.items():
        if "input_projection" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                apart[name.replace("projection.", f"projection_{letter}.")] = part.clone()
        else:
            apart[name] = tensor
    torch.save(state, tmp_path / "one.pt")
    torch.save(apart, tmp_path / "three.pt")
    for name in ("one", "three"):
        from_llm_random(tmp_path / f"{name}.pt", tmp_path / name)
    assert_bit_equal(weights_of(tmp_path / "three", 0), weights_of(tmp_path / "one", 0))


def test_what_comes_in_goes_out_to_transformers(tmp_path):
    make, _, stated = NANO["grouped, gated, scaled"]
    torch.save(made(make).state_dict(), tmp_path / "model.pt")
    from_nano(tmp_path / "model.pt", tmp_path / "run", stated)
    assert write(tmp_path / "run", tmp_path / "hf")["target"] == "llama"
