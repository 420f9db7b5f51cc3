"""`upmix bench train`: its fields, its mistakes, and that the twin in transformers is the same model."""

import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from framework.recipe import load_recipe
from tests.helpers.runs import write_corpus

SMALL = ["bench/moe_256", "model.d_model=32", "model.vocab_size=384", "model.attention.num_heads=2",
         "model.attention.head_dim=16", "model.moe.num_experts=4", "model.moe.top_k=2", "model.moe.d_expert=8",
         "model.pattern=(*E)x2", "model.norm_eps=1e-3", "model.attention.rope_base=100"]
OURS_AND_THEIRS = {
    "embedding.weight": "model.embed_tokens.weight", "final_norm.weight": "model.norm.weight",
    "unembedding.weight": "lm_head.weight",
    "0.norm.weight": "input_layernorm.weight", "0.block.q.weight": "self_attn.q_proj.weight",
    "0.block.k.weight": "self_attn.k_proj.weight", "0.block.v.weight": "self_attn.v_proj.weight",
    "0.block.out.weight": "self_attn.o_proj.weight", "0.block.q_norm.weight": "self_attn.q_norm.weight",
    "0.block.k_norm.weight": "self_attn.k_norm.weight", "1.norm.weight": "post_attention_layernorm.weight",
    "1.block.router.weight": "mlp.gate.weight", "1.block.experts.down": "mlp.experts.down_proj",
}


def their_weights(ours: dict) -> dict:
    """Two of our layers are one of theirs, and gate and up of the experts one tensor."""
    theirs = {}
    for name, weight in ours.items():
        top, _, rest = name.partition(".")
        if top != "layers":
            theirs[OURS_AND_THEIRS[name]] = weight
            continue
        layer, rest = rest.split(".", 1)
        theirs_prefix = f"model.layers.{int(layer) // 2}"
        if rest == "block.experts.gate":
            both = torch.cat((weight, ours[name.removesuffix("gate") + "up"]), 1)
            theirs[f"{theirs_prefix}.mlp.experts.gate_up_proj"] = both
        elif rest != "block.experts.up":
            theirs[f"{theirs_prefix}.{OURS_AND_THEIRS[f'{int(layer) % 2}.{rest}']}"] = weight
    return theirs


@pytest.mark.parametrize("changes", [[], ["model.moe.normalize_top_k=false", "model.attention.num_kv_heads=1"]])
def test_the_twin_is_the_same_model(changes):
    pytest.importorskip("transformers")
    from framework.bench.huggingface import twin
    from framework.model import Context, build_language_model
    from framework.parametrization import initialize

    loaded = load_recipe(SMALL[0], [*SMALL[1:], *changes])
    ours = build_language_model(loaded.architecture)
    initialize(ours, loaded.recipe.parametrization.init, 0)
    theirs = twin(loaded)
    theirs.load_state_dict(their_weights(dict(ours.named_parameters())), strict=True)
    tokens_BS = torch.randint(384, (2, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(tokens_BS, Context()), theirs(tokens_BS).logits, rtol=1e-4, atol=1e-4)
    assert theirs.config._experts_implementation == "grouped_mm"


@pytest.mark.parametrize(("change", "named"), [
    ("model.moe.load_balance_weight=0.01", "load_balance_weight"), ("model.norm=layernorm", "layernorm"),
    ("model.pattern=(*-)x2", "pattern"), ("model.attention.window=8", "window"),
    ("model.moe.num_shared_experts=1", "num_shared_experts"), ("model.multipliers.logits=2", "multipliers"),
])
def test_what_the_twin_cannot_express_is_refused_by_name(change, named):
    from framework.bench.huggingface import twin
    from framework.errors import UserError

    with pytest.raises(UserError, match=named):
        twin(load_recipe(SMALL[0], [*SMALL[1:], change]))


def bench_on_rank(folder: Path, compare: str | None) -> dict:
    from framework.bench import bench_train

    os.environ["UPMIX_DATA"] = str(folder / "data")
    overrides = [*SMALL[1:], f"data.corpus={folder / 'corpus'}", "data.seq_len=16", "training.steps=2"]
    loaded = load_recipe(SMALL[0], overrides)
    return asdict(bench_train(loaded, torch.device("cpu"), num_steps=2, num_pairs=3, compare=compare))


@pytest.mark.parametrize("compare", ["hf", None])
def test_rates_ratios_and_utilisation_agree(ranks, tmp_path, compare):
    """More steps are timed than the recipe has: it starts over."""
    if compare:
        pytest.importorskip("transformers")
    write_corpus(tmp_path / "corpus")
    (measured,) = ranks.run(1, bench_on_rank, tmp_path, compare)
    assert measured["tokens_per_second"] > 0 and measured["peak_flops_per_second"] > 1e9
    flops = measured["mfu"] * measured["peak_flops_per_second"]
    assert measured["model_flops_per_second"] == pytest.approx(flops)
    assert list(measured["peers"]) == ([compare] if compare else [])
    for peer in measured["peers"].values():
        assert len(peer["ratios"]) == 3 and sorted(peer["ratios"])[1] == peer["median_ratio"]
        assert peer["tokens_per_second"] > 0
