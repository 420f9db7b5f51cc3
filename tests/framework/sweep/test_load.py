"""Sweeps from files and arguments: cells, their names and overrides, links, filters, and refusals in one line."""

import importlib
import os
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from framework.errors import UserError
from framework.files import is_plain_name
from framework.recipe import dump, load_recipe, recipe_names, sizes
from framework.recipe.tree import override, walk
from framework.recipe.yaml_reader import Entry, plain
from framework.sweep import Arguments, is_sweep, load_sweep, sweep_names
from framework.sweep.values import assign, of

RECIPE = """
tags: [own]
model: {pattern: "(*E)x2", d_model: 64, vocab_size: 100, attention: {num_heads: 2}, ffn: {multiplier: 2},
        moe: {expansion_rate: 4, granularity: 2}}
data: {corpus: nowhere, seq_len: 32, batch_size: 8}
training: {steps: 5}
"""
SWEEP = """
recipe: recipe.yaml
tags: [lr, own]
set: {training: {steps: 10}, data.corpus: elsewhere}
over:
  - model.moe.expansion_rate: [1, 4]
  - optim.lr: log2(-10..-9 step 0.5)
  - zip: {model.d_model: [64, 128], model.attention.num_heads: [2, 4]}
  - chain:
      - {optim.weight_decay: [0.2]}
      - product: [{optim.eps: [1e-7, 1e-9]}]
link: "data.batch_size * data.seq_len = 1024"
where: ["model.d_model > 64 or optim.lr < 1.5e-3", "params_active < 1e6"]
seeds: 2
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name="grid.yaml"):
        Path(name).write_text(text)
        return name

    write(RECIPE, "recipe.yaml")
    return write


def lines(**changes):
    """A sweep's file with some keys only."""
    return "".join(f"{key}: {text}\n" for key, text in ({"recipe": "recipe.yaml"} | changes).items())


def test_a_file_with_everything(write):
    sweep = load_sweep(write(SWEEP + 'name: "grid"\n').replace("'", ""), Arguments(
        over=("data.seq_len=32,64",), where=("training.seed < 1",), tags=("more",)))
    assert (sweep.name, sweep.recipe, sweep.tags) == ("grid", "recipe.yaml", ("lr", "own", "more"))
    assert len(sweep.cells) == 2 * (3 * 2 - 1) * 3 * 2
    first, recipe = sweep.cells[0], sweep.cells[0].loaded.recipe
    assert first.name == "expansion_rate_1-lr_2^-10-d_model_64-num_heads_2-weight_decay_0.2-seq_len_32-seed_0"
    assert first.changes == {
        "model.moe.expansion_rate": 1, "optim.lr": 2**-10, "model.d_model": 64, "model.attention.num_heads": 2,
        "optim.weight_decay": 0.2, "data.seq_len": 32, "training.seed": 0, "data.batch_size": 32}
    assert (recipe.training.steps, recipe.data.corpus, recipe.tags) == (10, "elsewhere", ("own", "lr", "more"))
    assert {cell.loaded.recipe.data.batch_size * cell.loaded.recipe.data.seq_len for cell in sweep.cells} == {1024}
    names = [cell.name for cell in sweep.cells]
    assert len({*names}) == len(names) and all(map(is_plain_name, names))
    for cell in sweep.cells[::7]:
        assert load_recipe(sweep.recipe, cell.overrides) == cell.loaded


def test_the_command_line_beats_set_and_the_files_seeds(write):
    sweep = load_sweep(write(SWEEP), Arguments(("training.steps=7", "tags=[mine]", "data.seq_len=32"), seeds="5,8",
                                               name="other"))
    assert sweep.name == "other"
    recipes = [cell.loaded.recipe for cell in sweep.cells]
    assert {recipe.training.seed for recipe in recipes} == {5, 8} and recipes[0].training.steps == 7
    assert recipes[0].tags == ("mine", "lr", "own") and {recipe.data.batch_size for recipe in recipes} == {32}


def test_a_recipe_with_axes_and_one_without(write):
    sweep = load_sweep("recipe.yaml", Arguments(
        over=("optim.lr=1e-3,2e-3 & optim.eps=1e-8,1e-9", "model.pattern=(*E)x2,[*E]x3"), seeds="1..2"))
    assert (sweep.name, len(sweep.cells)) == ("recipe", 8)
    assert {(cell.changes["optim.lr"], cell.changes["optim.eps"]) for cell in sweep.cells} == {
        (1e-3, 1e-8), (2e-3, 1e-9)}
    assert {cell.loaded.recipe.model.pattern for cell in sweep.cells} == {"(*E)x2", "[*E]x3"}
    one, = load_sweep("recipe.yaml", Arguments(("training.steps=6",))).cells
    assert (one.name, one.changes, one.overrides) == ("recipe", {}, ("training.steps=6",))


def test_a_name_is_a_cells_own(write):
    """More values leave the cells that are there their names, and so their runs."""
    few, more = (load_sweep("recipe.yaml", Arguments(over=(f"optim.lr={listed}", "optim.eps=1e-8,1e-9")))
                 for listed in ("1e-3,2e-3", "2e-3,5e-4,1e-3"))
    assert {cell.name for cell in few.cells} < {cell.name for cell in more.cells}


def test_links_are_solved_in_any_order_and_may_name_sizes(write):
    cells = load_sweep("recipe.yaml", Arguments(over=("model.d_model=64,128",), link=(
        "training.tokens = 20 * params_active", "data.batch_size * data.seq_len = 4096",
        "data.seq_len = 2 * model.d_model"))).cells
    for cell, width in zip(cells, (64, 128), strict=True):
        active = sizes(cell.loaded.architecture, 1)["params_active"]
        assert cell.changes == {"model.d_model": width, "training.tokens": 20 * active, "data.seq_len": 2 * width,
                                "data.batch_size": 2048 // width}


def test_a_link_without_an_open_field_is_a_condition(write):
    over = ("data.batch_size=8,16,32", "data.seq_len=32,64")
    found = load_sweep("recipe.yaml", Arguments(over=over, link=("data.batch_size * data.seq_len = 512",))).cells
    assert [cell.name for cell in found] == ["batch_size_8-seq_len_64", "batch_size_16-seq_len_32"]


@pytest.mark.parametrize(("condition", "kept"), [
    ("tokens >= 5 * 16 * 32", [16]), ("steps == 5 and num_experts == 8 and data.batch_size < 16", [8]),
    ("model.moe.num_experts == 8", [8, 16]),
    ("flops_per_token > 1 and optim.relative_lr.router.start == null", [8, 16]),
])
def test_conditions_see_fields_derived_ones_and_sizes(write, condition, kept):
    found = load_sweep("recipe.yaml", Arguments(over=("data.batch_size=8,16",), where=(condition,))).cells
    assert [cell.changes["data.batch_size"] for cell in found] == kept


REFUSED = [
    (lines(ovr="[]"), "grid.yaml:2: ovr: unknown key; nearest: over"),
    ("over: [{optim.lr: [1, 2]}]\nrecipe:\n", "grid.yaml: recipe: missing"),
    (lines(over="[{optim.lr: []}]"), "grid.yaml:2: optim.lr: given no values"),
    (lines(over="[{optim.lr: 1e-3}]"), "grid.yaml:2: optim.lr: given 0.001; allowed: a list"),
    (lines(over="[]"), "grid.yaml:2: over: given []"),
    (lines(over="[3]"), "grid.yaml:2: over: given 3"),
    (lines(over="[{chain: {optim.lr: [1]}}]"), "grid.yaml:2: chain: given"),
    (lines(over="[{'a b': [1]}]"), "grid.yaml:2: given the key 'a b'"),
    (lines(over="\n  - zip:\n      optim.lr: [1, 2]\n      optim.eps: [1, 2, 3]"),
     "grid.yaml:3: zip: given 2 of optim.lr"),
    (lines(over="\n  - optim.lr: [1, 2]\n  - optim.lr: [3]"), "optim.lr: stated by two axes of one product"),
    (lines(set="{optim: {lr: 1}}", over="[{optim.lr: [1, 2]}]"), "optim.lr: an axis, and stated for all cells too"),
    (lines(over="[{optim.lr: 1..10 step 2}]"), "grid.yaml:2: optim.lr: given '1..10 step 2'"),
    (lines(over="[{optim.lr: [1, *x]}]"), "grid.yaml:2: '*' begins an alias"),
    (lines(over="[{optim.lr: [!!python/name:os.system 1]}]"), "grid.yaml:2: the tag"),
    (lines(over="\n- {data.seq_len: [8, 8]}"), "are the same recipe"),
    (lines(over="\n- {optim.lr: [1, none]}"), "grid.yaml:3: cell lr_none: optim.lr: given 'none'"),
    (lines(over="[{model.d_model: [64, 65]}]"),
     "grid.yaml:2: cell d_model_65: model.attention.num_heads (recipe.yaml:3) and model.d_model: 2 heads"),
    (lines(over="[{optim.rl: [1]}]"), "grid.yaml:2: cell rl_1: optim.rl: unknown key; allowed: lr,"),
    (lines(seeds="2", where="[optim.lr > 3]"), "no cell of 2 is left after 'optim.lr > 3'"),
    (lines(seeds="2", where="lr > 3"), "grid.yaml:3: where: lr is no field and no size; nearest: optim.lr"),
    (lines(seeds="2", where="[9**9**9 > 1]"), "grid.yaml:3: where: cell seed_0: 9**9**9 > 1: 9 ** 3.8742e+08 is too"),
    (lines(seeds="[]"), "grid.yaml:2: seeds: given []"),
    (lines(seeds="-1"), "grid.yaml:2: seeds: given -1"),
    (lines(seeds="2", link="[model.vocab_size = 7 * params_active]"),
     "params_active depends on model.vocab_size in turn"),
    (lines(seeds="2", link="[optim.lr + 1 / optim.lr = 3]"), "grid.yaml:3: link: cell seed_0: optim.lr + 1 / optim.lr"),
    (lines(seeds="2", link="[optim.lr = 1 / (2 - 2)]"), "optim.lr = 1 / (2 - 2): 1 / 0"),
    (lines(seeds="2", link="[optim.lr * optim.eps = 1]"), "nothing states optim.lr and optim.eps"),
    (lines(over="[{data.seq_len: [24]}]", link="[data.batch_size * data.seq_len = 64]"),
     "grid.yaml:3: cell seq_len_24: data.batch_size: given 2.6666666666666665; allowed: a valid integer "
     "(data.batch_size by the link data.batch_size * data.seq_len = 64)"),
    (lines(seeds="400", over="[{optim.lr: 1..300}]"), "over: gives 120,000 cells; allowed: up to 100,000"),
    (lines(name="a/b"), "the sweep's name 'a/b'"), (lines(tags="[3]"), "grid.yaml:2: tags: given 3"),
    (lines(recipe="nothing/there"), "no recipe 'nothing/there'"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_refusals_are_one_line_that_says_where(write, text, said):
    with pytest.raises(UserError) as refusal:
        load_sweep(write(text))
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(("arguments", "said"), [
    (Arguments(over=("optim.lr",)), "--over: given 'optim.lr'"), (Arguments(over=("optim.lr=",)), "one value or more"),
    (Arguments(over=("optim.lr=1,2 & optim.eps=1",)), "given 2 of optim.lr, 1 of optim.eps"),
    (Arguments(over=("optim.lr=[1",)), "optim.lr: given '[1'"), (Arguments(seeds="x"), "--seeds: given"),
    (Arguments(seeds="2", over=("training.seed=1,2",)), "stated by two axes"),
    (Arguments(("training.seed=1",), seeds="2"), "training.seed: an axis, and stated for all cells"),
    (Arguments(("optim.lr=1", "optim.lr=2")), "optim.lr: given twice"),
    (Arguments(seeds="2", link=("a == 1",)), "--link: given 'a == 1'"),
])
def test_refused_arguments(write, arguments, said):
    with pytest.raises(UserError, match="command line") as refusal:
        load_sweep("recipe.yaml", arguments)
    assert said in str(refusal.value)


def test_what_is_a_sweep(write):
    assert is_sweep(write(SWEEP)) and not is_sweep("recipe.yaml") and not is_sweep("nothing.yaml")
    assert not is_sweep("quickstart") and not is_sweep("../sweeps/x") and not is_sweep("\0")
    assert is_sweep("joint_moe/lr_grid") and not is_sweep(write("chain: []\n", "chain.yaml"))


def test_every_shipped_sweep_loads_and_none_hides_a_recipe():
    assert len(sweep_names()) >= 3 and not {*sweep_names()} & {*recipe_names()}
    for name in sweep_names():
        sweep = load_sweep(name)
        assert len(sweep.cells) >= 10 and sweep.tags and sweep.recipe in recipe_names()
        assert load_recipe(sweep.recipe, sweep.cells[-1].overrides) == sweep.cells[-1].loaded


@pytest.mark.parametrize("name", ["quickstart", "joint_moe/laptop", "mup_moe/paper_wide_experts"])
def test_recipes_are_written_alike_with_and_without_libyaml(name, monkeypatch):
    recipe = load_recipe(name, ["tags=[a b, '1', null x]", 'description="long: " # text']).recipe
    text = dump(recipe)
    monkeypatch.setattr(importlib.import_module("framework.recipe.dump"), "_Dumper", yaml.SafeDumper)
    assert dump(recipe) == text and yaml.safe_load(text)["tags"] == ["a b", "1", "null x"]


hostile = st.text() | st.sampled_from([
    "$(touch x)", "`id`", "a b", "; rm -rf x", "'\"", "new\nline", "${HOME}", "../..", "*E",
    "!!python/name:os.system x", "{a: 1}", "[1", "null", "true", "1e3", "- x", "#", "\x85",
    "\u2028", "𝕏", " lead", "=", "%s", "~", ".nan",
])
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | hostile,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile, inner, max_size=3), max_leaves=6)


@settings(max_examples=20, deadline=None)
@given(anything)
@example(1e16)
@example(["a\nb", {"c: d": "*e"}])
def test_any_value_survives_in_an_override(value):
    (key, entry), = list(walk(override(Entry({}, None, 0), [assign("data.corpus", value)], 1)))[1:2]
    assert key == "data.corpus"
    assert _as_tuples(plain(entry)) == _as_tuples(value)


def _as_tuples(value):
    """Lists are tuples to a recipe; a sign of zero and whole floats stay."""
    if isinstance(value, dict):
        return {key: _as_tuples(inner) for key, inner in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else repr(value)


@settings(max_examples=20, deadline=None)
@given(st.lists(hostile.filter(bool), min_size=1, max_size=4, unique=True))
def test_hostile_text_reaches_the_recipe_unchanged_and_executes_nothing(texts):
    before = set(os.listdir())
    sweep = load_sweep("quickstart", Arguments(over=(f"data.corpus={', '.join(_quoted(text) for text in texts)}",)))
    assert [cell.loaded.recipe.data.corpus for cell in sweep.cells] == texts
    assert all(load_recipe("quickstart", cell.overrides) == cell.loaded for cell in sweep.cells)
    names = [cell.name for cell in sweep.cells]
    assert len({*names}) == len(names) and all(map(is_plain_name, names))
    assert all(set(name) <= {*string.ascii_letters, *string.digits, *"._-^="} for name in names)
    assert set(os.listdir()) == before


def _quoted(text):
    return assign("x", text)[2:]


def test_labels_tell_values_apart():
    given = ["a b", "a_b", 1, "1", 1.0, True, "true", None, "", "~", [1, 2], "[1, 2]", "x" * 50, "x" * 51]
    assert len({of(value).label for value in given}) == len(given)
