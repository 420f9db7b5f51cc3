"""The rule that shrinks a recipe: sizes are cut, what decides which code runs stays."""

import pytest

from framework.equivalence import DEFAULT_LAYOUTS, parse_layout, shrink_recipe
from framework.errors import UserError
from framework.recipe import load_recipe, recipe_names

WIDE = [
    "model.d_model=768", "model.vocab_size=50304", "model.attention={num_heads: 12, num_kv_heads: 4, qk_norm: full}",
    "model.ffn.multiplier=2.5", "model.moe={num_experts: 60, top_k: 6, d_expert: 100, router: sigmoid, "
    "selection_bias_rate: 0.01, num_shared_experts: 4, shared_expert_router: true, capacity_factor: 1.5}",
]


def small(name: str, *overrides: str, layout: str = "dp_shard2"):
    return shrink_recipe(load_recipe(name, overrides), parse_layout(layout))


def settings_of(loaded, letter: str):
    return next(sublayer.settings for sublayer in loaded.architecture.sublayers() if sublayer.letter == letter)


def kinds_of(loaded) -> set[str]:
    return {sublayer.kind for sublayer in loaded.architecture.sublayers()}


def depends_on_micro_batches(loaded) -> bool:
    """Whether tokens of several sequences are chosen or balanced together."""
    return any(
        settings.choice_group == "position" if settings.router == "expert_choice"
        else settings.load_balance_over == "forward" and settings.load_balance_weight > 0
        for settings in (sub.settings for sub in loaded.architecture.sublayers() if sub.kind == "moe")
    )


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_shrinks_for_every_layout(name):
    loaded = load_recipe(name)
    for layout in map(parse_layout, DEFAULT_LAYOUTS):
        if layout.parallel.pp > 1 and depends_on_micro_batches(loaded):
            with pytest.raises(UserError, match="allowed: layouts without pp"):
                shrink_recipe(loaded, layout)
            continue
        found = shrink_recipe(loaded, layout)
        recipe = found.recipe
        assert (recipe.model.d_model, recipe.model.vocab_size, recipe.data.seq_len) == (64, 256, 64)
        assert recipe.parallel.model_copy(update={"dedup_dispatch": False}) == layout.parallel
        assert kinds_of(found) == kinds_of(loaded)


@pytest.mark.parametrize(("layout", "pattern"), {
    "dp_shard2": "*E", "pp2": "*E", "pp4-interleaved": "*E*E*E*E", "tp2xpp2": "*E", "pp2-zb": "*E", "pp3": "*E*E",
}.items())
def test_the_pattern_has_a_layer_for_every_stage(layout, pattern):
    assert small("quickstart", layout=layout).recipe.model.pattern == pattern


def test_branches_stay_and_cuts_go():
    assert small("quickstart", "model.pattern=([*E]-|)x3[*E]-").recipe.model.pattern == "[*E]-"


def test_what_decides_the_code_stays():
    found = small("quickstart", *WIDE, "model.tie_embeddings=true", "model.norm=layernorm",
                  "data.isolate_documents=true", "optim.clip_norm=0.3",
                  "training.recompute=full", "parallel.dedup_dispatch=true",
                  "model.multipliers={embedding: 2.0, residual: 0.5}", "training.dtype=bfloat16")
    moe, attention, recipe = settings_of(found, "E"), settings_of(found, "*"), found.recipe
    assert (moe.num_experts, moe.top_k, moe.d_expert, moe.num_shared_experts) == (8, 4, 32, 2)
    assert (moe.router, moe.selection_bias_rate, moe.capacity_factor) == ("sigmoid", 0.01, 1.5)
    assert moe.shared_expert_router
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (8, 2, 8)
    assert attention.qk_norm == "full"
    assert recipe.model.tie_embeddings and recipe.model.norm == "layernorm"
    assert (recipe.model.multipliers.embedding, recipe.model.multipliers.residual) == (2.0, 0.5)
    assert recipe.data.isolate_documents and recipe.parallel.dedup_dispatch
    assert (recipe.optim.clip_norm, recipe.training.recompute, recipe.training.dtype) == (0.1, "full", "float32")


@pytest.mark.parametrize(("heads", "kv_heads", "expected"), [
    (12, 12, 8), (12, 6, 4), (12, 4, 2), (12, 1, 1), (64, 8, 2), (4, 4, 8), (4, 2, 4), (2, 1, 1),
])
def test_key_heads_stay_one_grouped_or_equal(heads, kv_heads, expected):
    heads = f"{{num_heads: {heads}, num_kv_heads: {kv_heads}}}"
    found = small("quickstart", "model.d_model=768", f"model.attention={heads}")
    assert settings_of(found, "*").num_kv_heads == expected


@pytest.mark.parametrize(("fields", "head_dim", "rotated"), [
    ("num_heads: 4", 8, 8), ("num_heads: 4, head_dim: 64", 16, 16), ("num_heads: 4, rope_fraction: 0.25", 8, 2),
    ("num_heads: 4, rope_fraction: 0.0625", 8, 2), ("num_heads: 4, rope_fraction: 0.75", 8, 6),
])
def test_heads_stay_as_wide_as_the_model_or_wider_and_rotate_an_even_number(fields, head_dim, rotated):
    attention = settings_of(small("quickstart", f"model.attention={{{fields}}}"), "*")
    assert attention.head_dim == head_dim
    assert attention.rope_fraction * head_dim == rotated


def test_further_letters_shrink_on_their_own():
    found = small(
        "quickstart", "model.pattern=(WENM)x3", "model.mamba={expand: 1.5, head_dim: 24, num_groups: 4}",
        "model.sublayers={W: {kind: attention, window: 1024, num_kv_heads: 1}, N: {kind: mamba1, d_state: 8}}",
    )
    window, mamba1, mamba2 = settings_of(found, "W"), settings_of(found, "N"), settings_of(found, "M")
    assert (window.window, window.num_heads, window.num_kv_heads) == (24, 8, 1)
    assert (mamba1.d_state, mamba1.dt_rank, mamba1.expand) == (8, 4, 2.0)
    assert (mamba2.d_state, mamba2.head_dim, mamba2.num_groups) == (16, 16, 2)


def test_clipping_stays_off_where_it_is():
    assert small("quickstart", "optim.clip_norm=null").recipe.optim.clip_norm is None


def test_sequences_are_enough_for_shares_and_micro_batches():
    for layout in map(parse_layout, [*DEFAULT_LAYOUTS, "dp_shard3", "dp_shard3xpp2", "pp8", "dp_shard12", "pp3"]):
        data = shrink_recipe(load_recipe("quickstart"), layout).recipe.data
        shares = layout.parallel.dp_replicate * layout.parallel.dp_shard
        assert data.batch_size >= 8
        if layout.parallel.pp > 1:
            assert data.batch_size // shares // data.micro_batch_size % layout.parallel.pp == 0


@pytest.mark.parametrize(("layout", "told"), {
    "ep16": "layout ep16: parallel.ep: ep 16 does not divide the 8 experts of 'E'; allowed: a divisor",
    "dp_shard3xep2": "layout dp_shard3xep2: parallel.ep and parallel.dp_shard: ep 2 does not divide",
}.items())
def test_a_layout_that_does_not_divide_is_refused_in_one_line(layout, told):
    with pytest.raises(UserError) as error:
        small("quickstart", layout=layout)
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("moe", ["{router: expert_choice, choice_group: position}", "{load_balance_over: forward}"])
def test_a_loss_that_depends_on_micro_batches_is_not_tried_with_stages(moe):
    small("quickstart", f"model.moe={moe}", layout="dp_shard2xtp2")
    with pytest.raises(UserError, match="the loss depends on the micro-batches that pp cuts a step into"):
        small("quickstart", f"model.moe={moe}", layout="pp2")
