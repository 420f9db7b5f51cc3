"""Loading: extending, overriding, origins, and which of two statements of one size holds."""

from fractions import Fraction

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from framework.parametrization.roles import Role
from framework.recipe import RecipeError, architecture, dump, load_recipe, parameters, recipe_names, require_runnable
from framework.recipe.schema import Model, MoE
from framework.recipe.settle import settle_moe

BASE = """
description: the base
model:
  pattern: "(*E)x2"
  d_model: 64
  vocab_size: 100
  attention: {num_heads: 4}
  ffn: {multiplier: 4}
  moe:
    expansion_rate: 8
    granularity: 4
data: {corpus: python_stdlib, batch_size: 8}
training: {steps: 5}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="child.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    write(BASE, "base.yaml")
    return write


def moe_sizes(loaded):
    (moe,) = {sub.settings for sub in loaded.architecture.sublayers() if sub.kind == "moe"}
    return moe.num_experts, moe.top_k, moe.d_expert


def test_child_is_merged_over_its_base_with_origins(write):
    child = write("extends: base.yaml\noptim:\n  lr: 1e-3\nmodel:\n  d_model: 128\n")
    loaded = load_recipe(child, ["model.attention.num_heads=8", "data.seq_len=32"])
    assert (loaded.recipe.model.d_model, loaded.recipe.model.vocab_size, loaded.recipe.optim.lr) == (128, 100, 1e-3)
    origins = {key: str(origin).rpartition("/")[2] for key, origin in loaded.origins.items()}
    assert origins["model.d_model"] == "child.yaml:5" and origins["optim.lr"] == "child.yaml:3"
    assert origins["model.vocab_size"] == "base.yaml:6" and origins["optim.betas"] == "default"
    assert origins["model.attention.num_heads"] == origins["data.seq_len"] == "command line"
    assert loaded.recipe.description == ""


def test_later_bases_take_precedence(write):
    write("optim: {lr: 2.0, eps: 1.0}", "first.yaml")
    write("optim: {lr: 3.0}", "second.yaml")
    loaded = load_recipe(write("extends: [base.yaml, first.yaml, second.yaml]"))
    assert (loaded.recipe.optim.lr, loaded.recipe.optim.eps) == (3.0, 1.0)


@pytest.mark.parametrize("text", ["extends: child.yaml", "extends: other.yaml"])
def test_circles_are_refused(write, text):
    write("extends: child.yaml", "other.yaml")
    with pytest.raises(RecipeError, match="no circle"):
        load_recipe(write(text))


def test_override_values_are_yaml_or_else_text(write):
    base = write(BASE)
    for pattern in ("(*E)x4", "*E", "[*E]", "[*E]x8", "-|-", "-"):
        assert load_recipe(base, [f"model.pattern={pattern}"]).recipe.model.pattern == pattern
    loaded = load_recipe(base, ["optim.clip_norm=null", "optim.betas=[0.5, 0.6]", "data.corpus=a: b: c",
                                "data.batch_ramp={1000: 4}", "training.tokens=1e6", "optim.relative_lr.expert.end=0.5"])
    assert loaded.recipe.optim.clip_norm is None and loaded.recipe.optim.betas == (0.5, 0.6)
    assert loaded.recipe.data.corpus == "a: b: c" and loaded.recipe.data.batch_ramp == {1000: 4}
    assert loaded.recipe.training.tokens == 10**6 and loaded.recipe.training.steps is None
    assert loaded.recipe.optim.relative_lr["expert"].end == 0.5


@pytest.mark.parametrize(("stated", "sizes"), [
    ([], (32, 4, 64)),
    (["granularity=2"], (16, 2, 128)),
    (["expansion_rate=2"], (8, 4, 64)),
    (["num_experts=10"], (10, 4, 64)),
    (["top_k=3"], (32, 3, 64)),
    (["top_k=3", "num_experts=6"], (6, 3, 64)),
    (["d_expert=32"], (64, 8, 32)),
    (["d_expert=100", "top_k=1", "num_experts=5"], (5, 1, 100)),
    (["granularity=2", "top_k=2", "d_expert=128", "num_experts=16", "expansion_rate=8"], (16, 2, 128)),
])
@pytest.mark.parametrize("by", ["command line", "child"])
def test_a_later_statement_of_a_size_replaces_the_other_way_of_saying_it(write, stated, sizes, by):
    if by == "child":
        fields = ", ".join(each.replace("=", ": ") for each in stated)
        loaded = load_recipe(write(f"extends: base.yaml\nmodel: {{moe: {{{fields}}}}}"))
    else:
        loaded = load_recipe(write(BASE), [f"model.moe.{each}" for each in stated])
    assert moe_sizes(loaded) == sizes
    assert moe_sizes(load_recipe(write(dump(loaded.recipe), "dumped.yaml"))) == sizes


def test_a_later_rate_replaces_explicit_counts(write):
    text = "extends: base.yaml\nmodel: {moe: {num_experts: 12, top_k: 3, d_expert: 10}}"
    assert moe_sizes(load_recipe(write(text))) == (12, 3, 10)
    assert moe_sizes(load_recipe(write(text), ["model.moe.granularity=8"])) == (12, 8, 32)
    rates = ["model.moe.granularity=8", "model.moe.expansion_rate=2"]
    assert moe_sizes(load_recipe(write(text), rates)) == (16, 8, 32)


@pytest.mark.parametrize(("field", "value", "sizes"), [
    ("granularity", 8, (64, 8, 32)), ("d_expert", 128, (16, 2, 128)),
])
def test_num_experts_beside_its_rates_follows_a_later_width(write, field, value, sizes):
    agreeing = write("extends: base.yaml\nmodel: {moe: {num_experts: 32, expansion_rate: 8}}")
    loaded = load_recipe(agreeing, [f"model.moe.{field}={value}"])
    assert moe_sizes(loaded) == sizes
    assert str(loaded.origins["model.moe.num_experts"]) == f"replaced by model.moe.{field}, command line"


def test_d_ff_and_multiplier_replace_each_other(write):
    loaded = load_recipe(write("extends: base.yaml\nmodel: {ffn: {d_ff: 96}}"))
    assert (loaded.recipe.model.ffn.d_ff, loaded.recipe.model.ffn.multiplier) == (96, None)
    assert "replaced by model.ffn.d_ff" in str(loaded.origins["model.ffn.multiplier"])
    loaded = load_recipe(write("extends: base.yaml\nmodel: {ffn: {d_ff: 96}}"), ["model.ffn.multiplier=2"])
    assert moe_sizes(loaded) == (32, 4, 32)


@given(st.fixed_dictionaries({name: st.tuples(st.sampled_from([None, 1, 2, 4, 8]), st.integers(0, 2)) for name in (
    "expansion_rate", "granularity", "num_experts", "top_k", "d_expert")}))
def test_settling_keeps_every_latest_statement(fields):
    """Whatever is stated at the last level survives, and settling twice changes nothing."""
    level = {name: level for name, (_, level) in fields.items()}
    moe = MoE(**{name: value for name, (value, _) in fields.items()})
    settled, _ = settle_moe(moe, level, Fraction(64))
    latest = max((level[name] for name in fields if getattr(moe, name) is not None), default=0)
    for name in fields:
        if level[name] == latest and getattr(moe, name) is not None:
            assert getattr(settled, name) == getattr(moe, name)
    flat = dict.fromkeys(level, 0)
    assert settle_moe(settled, flat, Fraction(64))[0] == settled


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_a_dump(name, write):
    loaded = load_recipe(name)
    assert load_recipe(write(dump(loaded.recipe))).recipe == loaded.recipe
    assert loaded.recipe.description and "\n" not in loaded.recipe.description


def test_dump_keeps_every_kind_of_value(write):
    loaded = load_recipe(write(BASE), [
        "data.batch_ramp={1000: 4}", "optim.clip_norm=null", "optim.eps=1e-15", "training.profile_steps=[2, 3]",
        "model.sublayers.W={kind: attention, window: 4}", "data.corpus='no: 1e3'",
        "model.attention.rope_scaling={factor: 4.0}",
    ])
    dumped = dump(loaded.recipe)
    assert load_recipe(write(dumped)).recipe == loaded.recipe
    assert yaml.safe_load(dumped)["training"]["profile_steps"] == [2, 3]


@pytest.mark.parametrize(("overrides", "said"), [
    (["training.steps=null"], "neither steps nor tokens"), (["data.corpus=null"], "neither corpus nor blend"),
    (["tasks.every=2"], "tasks.every: given without tasks.names"), (["tasks.limit=2"], "tasks.limit: given without"),
])
def test_what_cannot_run_yet_can_be_shown(write, overrides, said):
    loaded = load_recipe(write(BASE), overrides)
    with pytest.raises(RecipeError) as caught:
        require_runnable(loaded)
    assert said in str(caught.value)
    require_runnable(load_recipe(write(BASE)))


def test_roles_are_those_of_the_models():
    everything = Model(
        pattern="*-EmM", d_model=64, vocab_size=10, attention={"qkv_bias": True, "qk_norm": True},
        moe={"num_experts": 4, "num_shared_experts": 1, "shared_expert_router": True},
    )
    assert {row.role for row in parameters(architecture(everything))} == {str(role) for role in Role} - {"mixing"}


def test_null_empties_a_mapping_that_a_base_filled(write):
    filled = "data: {batch_ramp: {1000: 4}}\noptim: {relative_lr: {expert: {start: 2.0}}}"
    write(f"extends: base.yaml\n{filled}", "ramp.yaml")
    loaded = load_recipe(write("extends: ramp.yaml\ndata: {batch_ramp: null}"), ["optim.relative_lr=null"])
    assert loaded.recipe.data.batch_ramp == {} and loaded.recipe.optim.relative_lr == {}
    assert load_recipe(write("extends: ramp.yaml")).recipe.data.batch_ramp == {1000: 4}


@pytest.mark.parametrize(("overrides", "said"), [
    (["parallel.tp=3"], "parallel.tp: tp=3 must divide the 4 query heads"),
    (["parallel.cp=3"], "parallel.cp: cp*tp=3*1 must divide"),
    (["parallel.pp=2", "data.micro_batch_size=4"], "= 1 micro-batches, but pp=2 needs at least 2"),
    (["parallel.engine=deepspeed", "parallel.tp=2"], "deepspeed does not compose with tp 2; allowed: dp_replicate"),
    (["parallel.zero_stage=1"], "given 1 with engine fsdp; allowed: 3, or engine deepspeed"),
])
def test_a_layout_that_cannot_split_the_model_is_refused_with_the_arithmetic(write, overrides, said):
    fields = ["model.attention.num_heads=4", "data.batch_size=4", "data.seq_len=64", *overrides]
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(BASE), fields)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ['description="\\ud800"', "description=\udc80", "description=[\udc80"])
def test_half_a_character_is_refused(given):
    """YAML's escapes can name one, and a byte that is no UTF-8 becomes one; no file could hold it."""
    with pytest.raises(RecipeError, match="description: given .*allowed: text that UTF-8 can hold"):
        load_recipe("quickstart", [given])
