"""Malformed recipes: each gives one line on standard error that says where, and exit code 2. Never a traceback."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.recipe.schema import Recipe
from framework.recipe.validate import schema_keys

GOOD = """\
model:
  pattern: "(*E-mM)x2"
  d_model: 64
  vocab_size: 100
  attention:
    num_heads: 4
  ffn:
    multiplier: 4
  moe:
    expansion_rate: 8
    granularity: 4
data:
  batch_size: 8
training:
  steps: 5
"""


def assert_refused(result, *said):
    code, out, err = result
    assert code == 2, (code, out, err)
    assert out == "" and err.startswith("upmix: ") and err.count("\n") == 1 and err.endswith("\n")
    assert "Traceback" not in err
    for words in said:
        assert words in err, err


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def test_the_good_recipe_is_good(good, upmix):
    assert upmix("show", good)[0] == 0


KEYS = schema_keys(Recipe)


def _wrong_values(key):
    """Values that the field takes none of."""
    if key == "model.attention.qk_norm":
        return ["1", "maybe", "[1]", "{}"]
    if key == "model.pattern":
        return ["3"]
    if key == "tasks.names":
        return ["3", "[1, 2]", "true", "{a: b}"]
    words = ("description", "data.corpus", "data.tokenizer", "tasks.path")
    return ["3", "[a, b]", "true"] if key in words else ["zzz", "{a: {b: c}}", ".nan", '"3"']


@pytest.mark.parametrize("key", KEYS)
def test_wrong_types(key, good, upmix):
    for value in _wrong_values(key):
        assert_refused(upmix("show", good, f"{key}={value}"), "command line", key)


@pytest.mark.parametrize("key", KEYS)
def test_misspelt_keys(key, good, upmix):
    section, _, name = key.rpartition(".")
    wrong = f"{section}.{name[:-1]}{name[-1]}q".lstrip(".")
    result = upmix("show", good, f"{wrong}=1")
    assert_refused(result, "command line", wrong, "unknown key", f"nearest: {name}")


@pytest.mark.parametrize(("overrides", "said"), [
    ("model.attention.num_heads=3", "3 heads do not divide d_model 64"),
    ("model.d_model=62", "command line: model.attention.num_heads ("),
    ("model.attention.num_kv_heads=3", "3 key-value heads do not divide 4 heads"),
    ("model.attention.rope_fraction=0.3", "an even number"),
    ("model.attention.head_dim=15", "an even number"),
    ("model.attention.rope_scaling={low_frequency_factor: 9.0}", "not below"),
    ("model.moe.granularity=7", "granularity 7 does not divide d_ff 256"),
    ("model.moe.granularity=512", "does not divide"),
    ("model.moe.top_k=40", "top_k 40 is above num_experts 32"),
    ("model.moe.top_k=3 model.moe.granularity=4", "top_k 3 contradicts granularity 4"),
    ("model.moe.num_experts=5 model.moe.expansion_rate=8", "num_experts 5 contradicts expansion_rate 8"),
    ("model.moe.d_expert=5 model.moe.granularity=8", "d_expert 5 contradicts granularity 8"),
    ("model.moe.d_expert=100 model.moe.top_k=2", "allowed: a whole number of experts"),
    ("model.moe.d_expert=100 model.moe.num_experts=8", "allowed: top_k given"),
    ("model.moe.expansion_rate=null", "num_experts: missing"),
    ("model.moe.shared_expert_router=true", "without shared experts"),
    ("model.moe.router=expert_choice model.moe.selection_bias_rate=0.1", "selection_bias_rate"),
    ("model.ffn.d_ff=100 model.ffn.multiplier=2", "d_ff 100 contradicts multiplier 2"),
    ("model.ffn.multiplier=2.001", "a whole d_ff"),
    ("model.mamba.head_dim=48", "head_dim 48 does not divide the inner width 128"),
    ("model.mamba.num_groups=3", "3 groups do not divide 2 heads"),
    ("model.mamba.expand=1.001", "a whole inner width"),
    ("model.mamba.d_conv=9", "less than or equal to 8"),
    ("model.pattern=(*Q)x2", "'Q' at position 3"),
    ("model.pattern=", "an empty pattern"),
    ("model.sublayers.E.kind=moe", "have a meaning already"),
    ("model.sublayers.x.kind=moe", "x repeats"),
    ("model.sublayers.WW.kind=moe", "at most 1 character"),
    ("model.sublayers.W={kind: attention, windw: 3}", "model.sublayers.W.windw: unknown key; nearest: window"),
    ("model.sublayers.W={kind: attention, window: a}", "model.sublayers.W.window: given 'a'"),
    ("model.sublayers.W={kind: rnn}", "model.sublayers.W.kind: given 'rnn'"),
    ("model.sublayers.W.window=3", "model.sublayers.W.kind: missing"),
    ("model.pattern=W model.sublayers.W={kind: attention, num_heads: 5}", "model.sublayers.W.num_heads"),
    ("parallel.ep=3", "ep 3 does not divide dp_shard * cp * tp = 1"),
    ("parallel.ep=64 parallel.dp_shard=64 data.batch_size=64", "ep 64 does not divide the 32 experts"),
    ("parallel.dp_shard=3", "8 sequences do not divide over 3 data-parallel ranks"),
    ("parallel.dp_replicate=16", "8 sequences do not divide over 16"),
    ("data.micro_batch_size=3", "3 does not divide a rank's share of 8"),
    ("data.batch_ramp={1000: 3} parallel.dp_shard=2", "3 sequences do not divide over 2"),
    ("data.batch_ramp={a: 3}", "data.batch_ramp"), ("data.batch_ramp={1000: 0}", "greater than 0"),
    ("data.corpus=a data.blend={b: 1.0}", "both are given"),
    ("training.steps=4 training.tokens=100", "training.steps"),
    ("training.profile_steps=[5, 2]", "the first step, then the last"),
    ("training.steps=0", "greater than 0"), ("training.steps=-1", "greater than 0"), ("training.steps=1.5", "integer"),
    ("training.steps=true", "valid integer"), ("training.steps='5'", "valid integer"), ("training.steps=many", "many"),
    ("training.tokens=1e30", "training.tokens: given 1e30; allowed: a whole number below 2^63"),
    ("training.steps=4 training.steps=5", "training.steps: given twice"), ("model.3=4", "model.3: unknown key"),
    ("optim.betas=[0.9", "allowed: a valid list"), ("data=null", "data: given null; allowed: a section"),
    ("model.moe={top_k: 1, top_k: 2}", "model.moe.top_k: given twice; allowed: once"),
    ("training.seed=99999999999999999999", "below 2^63"),
    ("optim.lr=.nan", "finite"), ("optim.lr=.inf", "finite"), ("optim.lr=0", "greater than 0"),
    ("optim.lr=yes", "'yes'"), ("model.ffn.multiplier=1e308", "less than or equal"),
    ("optim.betas=[0.9]", "optim.betas"), ("optim.betas=[0.9, 1.0]", "less than 1"), ("optim.betas=0.9", "optim.betas"),
    ("optim.relative_lr.exprt.start=2.0", "matches no parameter; nearest: expert"),
    ("model.pattern=(E)x2 optim.relative_lr.attention.start=2.0", "relative_lr.attention: matches no parameter"),
    ("optim.relative_lr.expert.begin=2.0", "optim.relative_lr.expert.begin: unknown key"),
    ("data.validation_fraction=1.0", "equal to 0.5"), ("format=2", "allowed: 1"), ("extends=quickstart", "unknown key"),
    ("granularity=2", "nearest: model.moe.granularity"), ("model=3", "a section with the keys pattern"),
    ("model.moe.granularity.x=3", "model.moe.granularity"), ("notanassignment", "key=value"), ("=3", "key=value"),
    ("a..b=3", "key=value"), ("model.moe={granularity: 4, granlarity: 2}", "model.moe.granlarity"),
    ("parallel.zero_stage=4", "1, 2 or 3"), ("parallel.engine=horovod", "'fsdp' or 'deepspeed'"),
    ("training.steps=!!python/object/apply:os.system [ls]", "the tag"),
])
def test_impossible_and_contradictory(overrides, said, good, upmix):
    arguments = re.split(r" (?=(?:model|data|optim|training|parallel)\.)", overrides)
    assert_refused(upmix("show", good, *arguments), "command line", said)


@pytest.mark.parametrize(("old", "new", "said"), [
    ("  d_model: 64\n", "", "good.yaml:1: model.d_model: missing"),
    ("d_model: 64", "d_model: sixty", "good.yaml:3: model.d_model: given 'sixty'"),
    ("d_model: 64", "d_modl: 64", "good.yaml:3: model.d_modl: unknown key; nearest: d_model"),
    ("num_heads: 4", "num_heads: 5", "good.yaml:6: model.attention.num_heads and model.d_model (good.yaml:3)"),
    ("granularity: 4", "granularity: 4\n    top_k: 2", "good.yaml:12: model.moe.top_k and model.moe.granularity"),
    ("granularity: 4", "granularity: 4\n    granularity: 2", "good.yaml:12: granularity: given twice"),
    ('"(*E-mM)x2"', "*E", "good.yaml:2: '*' begins an alias"),
    ('"(*E-mM)x2"', "|E", "quote the pattern"),
    ('"(*E-mM)x2"', "[mE]x2", "quote the pattern"),
    ('"(*E-mM)x2"', "[mE]", "good.yaml:2: model.pattern: given ['mE']"),
    ('"(*E-mM)x2"', "(*E-qM)x2", "good.yaml:2: model.pattern: 'q' at position 5"),
    ("data:", "dat:", "good.yaml:12: dat: unknown key; nearest: data"),
    ("steps: 5", "steps: 5\n  tokens: 7", "good.yaml:15: training.steps and training.tokens"),
    ("training:", "extends: nothing_there\ntraining:", "good.yaml:14: no recipe 'nothing_there'"),
    ("training:", "extends: nothing.yaml\ntraining:", "good.yaml:14: no recipe file 'nothing.yaml'"),
    ("training:", "extends: good.yaml\ntraining:", "good.yaml:14: extends: good.yaml extends this file in turn"),
    ("training:", "extends: [1]\ntraining:", "good.yaml:14: extends: given [1]"),
    ("training:", "[1]: 2\ntraining:", "good.yaml:14: a key of type"),
    ("  steps: 5", "\tsteps: 5", "good.yaml:15: not YAML"),
    ("steps: 5", "steps: [5", "not YAML"), ("steps: 5", "steps: {5", "not YAML"), ("steps: 5", "steps: 'a", "not YAML"),
    ("steps: 5", "steps: 5: 6", "good.yaml:15: not YAML"), ("steps: 5", "steps: @5", "good.yaml:15: not YAML"),
    ("steps: 5", "steps: &a 5\n  seed: *a", "good.yaml:16: '*' begins an alias"),
    ("steps: 5", "steps: !!python/object/apply:os.system ['ls']", "good.yaml:15: the tag"),
    ("steps: 5", "? [a]\n  : 3", "a key of type"), ("steps: 5", "<<: {steps: 5}", "training.<<: unknown key"),
    ("steps: 5", "steps: 5\n---\na: 1", "not YAML"), ("steps: 5", "steps: " + "[" * 50 + "]" * 50, "nested more than"),
    ("steps: 5", "steps: " + "{a: " * 5000 + "1" + "}" * 5000, "nested"), ("steps: 5", "steps: \0", "not YAML"),
])
def test_broken_files(old, new, said, good, upmix, monkeypatch):
    assert old in GOOD
    good.write_text(GOOD.replace(old, new))
    monkeypatch.chdir(good.parent)
    assert_refused(upmix("show", "good.yaml"), said)


@pytest.mark.parametrize("content", [b"", b"just words", b"- a\n- b", b"\xff\xfe\x00", b"\x00", b"%", b"? ?", b"null"])
def test_files_that_are_no_recipe(content, good, upmix):
    good.write_bytes(content)
    assert_refused(upmix("show", good), "good.yaml")


@pytest.mark.parametrize("name", ["quickstrt", "nothing.yaml", "", "a\0b", "../..", "base", "/", ".yaml", "x" * 5000])
def test_recipes_that_are_not_there(name, upmix):
    assert_refused(upmix("show", name))


def test_folder_as_recipe(tmp_path, upmix):
    (tmp_path / "folder.yaml").mkdir()
    assert_refused(upmix("show", tmp_path / "folder.yaml"))


SCALARS = st.none() | st.booleans() | st.integers(-5, 10) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from([key.rpartition(".")[2] for key in KEYS]) | st.text(max_size=3), inner, max_size=4), max_leaves=8)
QUIETLY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUIETLY
@given(key=st.sampled_from([*KEYS, "model", "model.moe", "optim.relative_lr.expert", "model.sublayers"]), value=VALUES)
def test_any_value_anywhere_is_taken_or_refused(key, value, good, upmix):
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("\n...\n")
    code, *_ = result = upmix("show", good, f"{key}={text}")
    if code:
        assert_refused(result)


@QUIETLY
@given(text=st.text("model:pattern d_*|-[]{}'\"\n\t&!#%@,1.e", max_size=60), cut=st.integers(0, len(GOOD)))
def test_any_text_in_a_file_is_taken_or_refused(text, cut, good, upmix):
    good.write_text(GOOD[:cut] + text + GOOD[cut:])
    code, *_ = result = upmix("show", good)
    if code:
        assert_refused(result)


@pytest.mark.parametrize(("arguments", "said"), [
    ((), "Missing argument"), (("quickstart", "--nonsense"), "--nonsense"),
    (("quickstart", "model.moe.granlarity=2"), "nearest: granularity"),
])
def test_through_the_shell(arguments, said):
    command = [str(Path(sys.executable).with_name("upmix")), "show", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert_refused((done.returncode, done.stdout, done.stderr), said)
