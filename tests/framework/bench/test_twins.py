"""Peers of `upmix bench train` are the same model: in transformers by logits and losses, in megatron-core by sizes."""

import pytest
import torch

from framework.errors import UserError
from framework.recipe import load_recipe, sizes
from tests.helpers.benches import MAMBA, MOE, on_corpus, once
from tests.helpers.conversion import shake
from tests.helpers.runs import write_corpus

MEGATRON = ["model.moe.num_shared_experts=1", "model.attention.qkv_bias=true", "model.attention.num_kv_heads=1"]


def load(words, *changes):
    return load_recipe(words[0], once([*words[1:], *changes]))


@pytest.mark.parametrize(("words", "changes"), [
    (MOE, []), (MOE, ["model.moe.normalize_top_k=false", "model.attention.num_kv_heads=1"]), (MAMBA, []),
    (MOE, ["model.pattern=*-*E", "parametrization.kind=mup", "parametrization.base_d_model=16"]),
])
def test_the_twin_is_the_same_model(words, changes, monkeypatch):
    pytest.importorskip("transformers")
    from framework.bench import huggingface
    from framework.model import Context, build_language_model
    from framework.parametrization import initialize, widths

    def initialize_and_shake(model, *rest):
        initialize(model, *rest)
        shake(model)

    loaded = load(words, *changes)
    rules = widths(loaded.recipe, loaded.architecture)
    ours = build_language_model(loaded.architecture, rules)
    initialize_and_shake(ours, loaded.recipe.parametrization.init, loaded.recipe.training.seed, rules)
    monkeypatch.setattr(huggingface, "initialize", initialize_and_shake)
    theirs = huggingface.twin(loaded)
    tokens_BS = torch.randint(384, (2, 40), generator=torch.Generator().manual_seed(0))
    mine = ours(tokens_BS, Context())
    assert mine.std() > 0.05
    torch.testing.assert_close(mine, theirs(tokens_BS).logits, rtol=1e-4, atol=1e-4)
    assert theirs.config._experts_implementation == "grouped_mm"


@pytest.mark.parametrize(("change", "named"), [
    ("model.moe.load_balance_weight=0.01", "load_balance_weight 0.01"), ("model.norm=layernorm", "layernorm"),
    ("data.isolate_documents=true", "isolated documents"), ("model.attention.window=8", "window"),
    ("training.recompute=full", "recompute full"), ("model.moe.capacity_factor=1", "capacity_factor 1"),
])
def test_what_the_twin_cannot_express_is_refused_by_name(change, named):
    from framework.bench.huggingface import twin

    with pytest.raises(UserError, match=named):
        twin(load(MOE, change))


@pytest.mark.parametrize(("words", "changes"), [
    (MOE, []), (MAMBA, ["data.micro_batch_size=1", "optim.clip_norm=0.1"]),
])
def test_both_train_alike_also_where_the_recipe_starts_over(tmp_path, monkeypatch, words, changes):
    pytest.importorskip("transformers")
    from framework.bench.ours import Ours
    from framework.bench.peers import hugging_face
    from parallel import Place, join

    write_corpus(tmp_path / "corpus")
    monkeypatch.setenv("UPMIX_DATA", str(tmp_path / "data"))
    name, *overrides = on_corpus(words, tmp_path, "optim.weight_decay=0", "optim.schedule=constant", *changes)
    loaded, device = load_recipe(name, overrides), torch.device("cpu")
    with join(Place(), device):
        ours, theirs = Ours(loaded, device), hugging_face(loaded, device)
        assert theirs.round(1)["tokens"] == ours.round(1)["tokens"] == 64
        mine = [ours.steps.next().loss for _ in range(3)]
        other = [theirs.step().item() for _ in range(3)]
    assert other == pytest.approx(mine, abs=2e-4) and mine[0] != mine[1]


@pytest.mark.parametrize(("changes", "kinds"), [([], 1), ([*MEGATRON, "model.pattern=*-*E"], [0, 1])])
def test_megatrons_model_has_the_recipes_sizes(changes, kinds):
    from megatron.core import parallel_state

    from framework.bench.megatron import build
    from parallel import Place, join

    loaded = load(MOE, *changes)
    with join(Place(), torch.device("cpu")):
        model = build(loaded, fused=False)
        parallel_state.destroy_model_parallel()
    config = model.config
    assert sum(parameter.numel() for parameter in model.parameters()) == sizes(loaded.architecture, 64)["params_total"]
    assert (config.num_layers, config.num_moe_experts, config.moe_router_topk, model.vocab_size) == (2, 4, 2, 384)
    assert config.moe_layer_freq == kinds and config.moe_shared_expert_intermediate_size == (8 if changes else None)
    assert not config.moe_router_pre_softmax and model.rotary_base == 100


def test_megatron_refuses_with_every_reason():
    from framework.bench.megatron import megatron_model, mismatches

    changes = ["model.attention.window=8", "model.moe.activation=relu", "model.multipliers.logits=2",
               "training.recompute=full", "data.isolate_documents=true", "model.moe.load_balance_weight=0.1"]
    text = "; ".join(mismatches(load(MOE, *changes)))
    for named in ("window is 8", "activation is 'relu'", "multipliers", "recompute", "isolated", "load_balance_weight"):
        assert named in text
    assert "m; allowed" in mismatches(load(MAMBA))[-1] and mismatches(load(MOE)) == []
    with pytest.raises(UserError, match="runs on a GPU, and none is here"):
        megatron_model(load(MOE), torch.device("cpu"))
