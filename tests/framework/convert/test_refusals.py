"""What no target can express, and folders that are damaged, incomplete or dangerous: one line each, nothing left."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from framework.convert import megatron
from framework.convert.architectures import TARGETS
from framework.convert.fields import Facts, Fixed, Mismatch
from framework.convert.imported import nested
from framework.convert.table import our_tensors
from framework.errors import UserError
from framework.recipe import load_recipe
from framework.recipe.architecture import architecture
from framework.recipe.schema import Model
from framework.surgery import find_source
from tests.helpers.conversion import (
    MODEL,
    OURS,
    VOCAB,
    assert_bit_equal,
    assert_same_logits,
    load_theirs,
    make_run,
    merged,
    read,
    weights_of,
    write,
)
from tests.helpers.disk import full_disk

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("refusals") / "run", "(*E)x2", attention={"qk_norm": "head"})


@pytest.fixture(scope="module")
def good(run) -> Path:
    """In one file."""
    write(run, run.parent / "good")
    return run.parent / "good"


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return shutil.copytree(good, tmp_path / "hf")


def refused(folder: Path, *overrides: str) -> str:
    """What is said; it is one line, and there is no run, nor a part of one."""
    with pytest.raises(UserError) as error:
        read(folder, folder.parent / "runs" / "new", *overrides)
    assert "\n" not in str(error.value)
    assert not list((folder.parent / "runs").glob("*new*")) if (folder.parent / "runs").exists() else True
    return str(error.value)


def change(folder: Path, function) -> None:
    tensors = load_file(folder / WEIGHTS)
    function(tensors)
    save_file(tensors, folder / WEIGHTS)


EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.mark.parametrize(("function", "said"), [
    (lambda tensors: tensors.pop(EXPERT), f"{EXPERT} is missing"),
    (lambda tensors: tensors.update(extra=torch.zeros(1)), "extra is unexpected"),
    (lambda tensors: tensors.update({EXPERT: torch.zeros(24, 31)}), f"{EXPERT} has shape [24, 31]; allowed: [24, 32]"),
    (lambda tensors: tensors.update({EXPERT: torch.zeros(24, 32, dtype=torch.int32)}), f"{EXPERT} is I32"),
])
def test_tensors_that_are_not_the_models(folder, function, said):
    change(folder, function)
    assert said in refused(folder)


def flip(content: bytes) -> bytes:
    """One bit of the header, in the first tensor's offsets."""
    at = content.index(b"data_offsets") + len(b'data_offsets":[')
    return content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [
    lambda content: content[: len(content) // 2], lambda content: content[:5], lambda content: b"", flip,
    lambda content: b"\xff" * 8 + content[8:], lambda content: content[:8] + b"\0" + content[9:],
])
def test_a_damaged_file_is_named(folder, damage):
    path = folder / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in (said := refused(folder)) and "truncated or damaged" in said


class Runs:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", WEIGHTS])
def test_a_pickle_is_never_read(folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Runs()))
    said = refused(folder)
    assert not (folder / "executed").exists()
    assert "pytorch_model.bin may run code" in said if name != WEIGHTS else "no safetensors file" in said


@pytest.mark.parametrize(("change", "said"), [
    ({"model_type": "gpt2"}, "'gpt2': no table of it here"),
    ({"model_type": None}, "no table of it here"),
    ({"model_type": ["qwen3_moe"]}, "no table of it here"),
    ({"num_hidden_layers": 4000}, "config.json says 8000 sublayers"),
    ({"hidden_size": [32]}, "config.json: model.d_model"),
    ({"hidden_size": {"a": 1}}, "config.json: model.d_model"),
    ({"vocab_size": 10**30}, "vocab_size is 1000000000"),
    ({"num_experts": 2**27}, "config.json says 134217728 experts"),
    ({"hidden_size": 2**27, "moe_intermediate_size": 2**27}, "embed_tokens.weight has shape"),
    ({"rms_norm_eps": float("nan")}, "config.json: model.norm_eps"),
    ({"norm_topk_prob": "x" * 10_000}, "norm_topk_prob is 'xxx"),
    ({"norm_topk_prob": "false"}, "norm_topk_prob is 'false'; allowed: true, false"),
    ({"tie_word_embeddings": 3}, "config.json: model.tie_embeddings"),
    ({"decoder_sparse_step": 0}, "decoder_sparse_step 0, num_hidden_layers 2 cannot be read"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}, "rope_parameters": {"rope_type": "default"}},
     "rope_scaling and rope_parameters differ in rope_type"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "without low_freq_factor, high_freq_factor"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; allowed: 'silu'"),
    ({"attention_bias": True}, "attention_bias is true; allowed: false"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
    ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight"),
    ({"hidden_size": None}, "hidden_size is missing"),
    ({"moe_intermediate_size": -1}, "moe.d_expert"),
    ({"rope_parameters": 7}, "cannot be read"),
])
def test_a_config_that_no_recipe_is(folder, change, said):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert said in (told := refused(folder)) and len(told) < 1000 and str(folder) in told


def test_a_config_that_does_not_say_of_what(folder):
    (folder / "config.json").write_text("{}")
    assert refused(folder).startswith(f"{folder / 'config.json'}: model_type is missing; allowed: ")


@pytest.mark.parametrize(("fields", "reads"), [
    ({"layer_types": ["full_attention", "sliding_attention"]}, False), ({"max_window_layers": 1}, False),
    ({"layer_types": ["full_attention"] * 2, "max_window_layers": 0}, True), ({}, True),
    ({"sliding_window": None}, True),
])
def test_windows_of_some_layers_are_seen(fields, reads):
    target = TARGETS["dots1"]
    fitting = architecture(Model(pattern="(*E)x2", d_model=32, vocab_size=VOCAB, attention={
        "num_heads": 4, "qk_norm": "head"}, moe={"num_experts": 4, "top_k": 2, "d_expert": 8, "router": "sigmoid"}))
    config = target.write_config(Facts(fitting, 64, 1, "float32")) | {"sliding_window": 4} | fields
    if reads:
        assert target.read_config(config)["attention.window"] is None
        return
    with pytest.raises(UserError, match="ask for windows in some layers"):
        target.read_config(config)


def test_null_is_no():
    entry = Fixed("mamba_conv_bias", True)
    assert entry.read({}) == entry.read({"mamba_conv_bias": True}) == {}
    with pytest.raises(Mismatch, match="mamba_conv_bias is false; allowed: true"):
        entry.read({"mamba_conv_bias": None})
    assert Fixed("attention_bias", False).read({"attention_bias": None}) == {}


def test_an_unembedding_that_repeats_what_it_is_tied_to(tmp_path):
    tied = make_run(tmp_path / "run", "(*E)x2", attention={"qk_norm": "head"}, tie_embeddings=True)
    write(tied, tmp_path / "hf")
    change(tmp_path / "hf", lambda tensors: tensors.update(
        {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert_same_logits(tied, load_theirs(tmp_path / "hf"))
    read(tmp_path / "hf", tmp_path / "back")
    assert_bit_equal(weights_of(tmp_path / "back", 0), weights_of(tied, 3))
    change(tmp_path / "hf", lambda tensors: tensors["lm_head.weight"][0].zero_())
    assert "lm_head.weight is not model.embed_tokens.weight" in refused(tmp_path / "hf")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_no_json_object(folder, content):
    (folder / "config.json").write_bytes(content)
    assert str(folder / "config.json") in refused(folder)


@pytest.mark.parametrize(("file", "said"), [
    ("../outside.safetensors", "allowed: safetensors files beside it"), ("gone.safetensors", "missing"),
    ("x.bin", "allowed: safetensors files beside it"), (7, "no weight_map"),
])
def test_an_index_that_points_elsewhere(folder, file, said):
    names = load_file(folder / WEIGHTS)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))
    assert said in refused(folder)


def test_overrides_that_make_another_model_are_refused(folder):
    assert "model.layers.0.mlp.experts.4.gate_proj.weight" in refused(folder, "model.moe.num_experts=5")
    assert "qk_norm is 'none'" in refused(folder, "model.attention.qk_norm=none")
    assert "model.norm_eps is 0.5; allowed: 0.001, as config.json says" in refused(folder, "model.norm_eps=0.5")
    assert "model.attention.rope_base is 1.0; allowed: 10000.0" in refused(folder, "model.attention.rope_base=1")
    assert "model.multipliers.logits is 2.0; allowed: 1.0" in refused(folder, "model.multipliers.logits=2.0")
    assert "parametrization changes what the weights" in refused(folder, "parametrization.kind=mup",
                                                                  "parametrization.base_d_model=16")


def test_overrides_that_change_training_alone_are_taken(folder, tmp_path):
    read(folder, tmp_path / "run", "model.moe.load_balance_weight=0.02", "model.norm_eps=0.001", "optim.lr=0.1")
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).recipe.model.moe.load_balance_weight == 0.02


@pytest.mark.parametrize("convert", [
    lambda run, folder, out: write(run, out), lambda run, folder, out: write(run, out, shard_bytes=10_000),
    lambda run, folder, out: read(folder, out),
    lambda run, folder, out: megatron.to_megatron(find_source(run), out, megatron.Options()),
])
def test_a_full_disk_is_told_in_a_line_and_nothing_is_left(run, folder, tmp_path, convert):
    with full_disk(4096), pytest.raises(UserError, match="cannot be written .*; allowed: more room") as error:
        convert(run, folder, tmp_path / "new")
    assert "\n" not in str(error.value) and not list(tmp_path.glob("*new*"))


# Fields of the recipe, the target that is asked for, what is said of it.
UNFIT = [
    ("(*E)x2", {"norm": "layernorm"}, "mixtral", "model.norm is 'layernorm'"),
    ("(*E)x2", {"attention": {"qk_norm": "full"}}, "qwen3_moe", "model.attention.qk_norm is 'full'"),
    ("(*E)x2", {"moe": {"activation": "relu2"}}, "mixtral", "model.moe.activation is 'relu2'"),
    ("(*E)x2", {"moe": {"router": "expert_choice"}}, "mixtral", "experts choose tokens"),
    ("(*E)x2", {"moe": {"normalize_top_k": False}}, "mixtral", "softmax over all"),
    ("(*E)x2", {"moe": {"output_norm": True}}, "mixtral", "model.moe.output_norm is true"),
    ("(*E)x2", {"moe": {"capacity_factor": 1.0, "capacity_in_evaluation": True}}, "mixtral", "capacity_in_evaluation"),
    ("(*E)x2", {"moe": {"gate_scale": 2.0}}, "mixtral", "model.moe.gate_scale is 2.0"),
    ("*E*-", {}, "mixtral", "sublayer 4 of 4 is -"),
    ("*E*-", {"norm": "layernorm"}, "mixtral", "sublayer 4 of 4 is -; allowed: *, then E; model.norm is 'layernorm'"),
    ("ME*E-M", {"tie_embeddings": True, "attention": {"rope": False}, "ffn": {"activation": "relu2"},
                "moe": {"activation": "relu2", "router": "sigmoid"}}, "nemotron_h", "model.tie_embeddings is true"),
    ("*E*-", {"attention": {"qk_norm": "head"}, "moe": {"router": "sigmoid"}}, "dots1", "dense layers first"),
    ("[*E]x2", {}, "mixtral", "parallel branches"),
    ("*E*", {}, "mixtral", "half a layer"),
    ("(mE)x2", {"moe": {"normalize_top_k": False}}, "jamba", "model.mamba.inner_norms is false"),
    ("m-mEmEm-", {"mamba": {"inner_norms": True}, "moe": {"normalize_top_k": False, "d_expert": 48}}, "jamba",
     "E does not stand in every so many layers"),
    ("mEm-", {"mamba": {"inner_norms": True}, "moe": {"normalize_top_k": False}}, "jamba", "one width"),
    ("MEM-", {}, "granitemoehybrid", "experts in all or in none"),
    ("MM", {"mamba": {"expand": 2.5}}, "mamba2", "no whole number"),
    ("*EWE", {"sublayers": {"W": {"kind": "attention", "window": 4}}}, "mixtral", "window of attention sublayers"),
    ("(*E)x2", {"attention": {"rope_fraction": 0.5}}, "mixtral", "rope_fraction"),
    ("(*E)x2", {"moe": {"num_shared_experts": 1}, "attention": {"qk_norm": "head"}}, None, "no target can express"),
]


@pytest.mark.parametrize(("pattern", "fields", "target", "said"), UNFIT)
def test_a_recipe_that_the_target_cannot_be(pattern, fields, target, said, tmp_path):
    run = make_run(tmp_path / "run", pattern, **fields)
    with pytest.raises(UserError) as error:
        write(run, tmp_path / "hf", target=target)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.glob("*hf*"))


def test_nearest_targets_are_told_with_each_mismatch(tmp_path):
    run = make_run(tmp_path / "run", "(*E)x2", attention={"qk_norm": "head"}, moe={"num_shared_experts": 1})
    with pytest.raises(UserError) as error:
        write(run, tmp_path / "hf")
    for told in ("qwen3_moe: model.moe.num_shared_experts is 1", "qwen2_moe: model.attention.qk_norm is 'head'"):
        assert told in str(error.value)


RECIPES = st.fixed_dictionaries({
    "pattern": st.sampled_from([
        "*-", "*E", "*-*E", "*E*-", "mE", "m-", "mEm-", "mE*E", "*-m-", "ME", "M-", "ME*E", "m", "M", "-", "E",
        "MEM*-", "E*", "M*", "mM"]),
    "norm": st.sampled_from(["rmsnorm", "rmsnorm", "rmsnorm", "layernorm"]),
    "tie_embeddings": st.booleans(),
    "attention": st.fixed_dictionaries({
        "num_heads": st.just(4), "qk_norm": st.sampled_from(["none", "head", "full"]), "qkv_bias": st.booleans(),
        "rope": st.booleans(), "rope_fraction": st.sampled_from([1.0, 0.5]), "window": st.sampled_from([None, 5])}),
    "ffn": st.fixed_dictionaries({
        "d_ff": st.sampled_from([24, 48]), "activation": st.sampled_from(["swiglu", "relu2"])}),
    "moe": st.fixed_dictionaries({
        "num_experts": st.sampled_from([1, 4]), "top_k": st.just(1), "d_expert": st.just(24),
        "activation": st.sampled_from(["swiglu", "relu2"]),
        "router": st.sampled_from(["softmax_topk", "topk_softmax", "sigmoid"]), "normalize_top_k": st.booleans(),
        "num_shared_experts": st.integers(0, 2), "gate_scale": st.sampled_from([1.0, 2.5]),
        "selection_bias_rate": st.sampled_from([0.0, 1e-3])}),
    "mamba": st.fixed_dictionaries({
        "d_state": st.just(6), "head_dim": st.just(8), "inner_norms": st.booleans(),
        "num_groups": st.sampled_from([1, 2]), "expand": st.sampled_from([2.0, 2.5])}),
})


def assert_told_back(target, fields: dict) -> None:
    """What the target's config says of the recipe's model reads as a model of the same tensors."""
    shape = architecture(Model(d_model=32, vocab_size=VOCAB, **fields))
    config = json.loads(json.dumps(target.write_config(Facts(shape, 64, 1, "float32"))))
    told = nested(target.read_config(config))
    told.setdefault("moe", {})["selection_bias_rate"] = fields["moe"].get("selection_bias_rate", 0.0)
    back = architecture(Model(**told))
    assert our_tensors(back) == our_tensors(shape), target.model_type
    assert target.write_config(Facts(back, 64, 1, "float32")) == config


@given(RECIPES)
@settings(max_examples=20, deadline=None)
def test_each_target_refuses_in_words_or_tells_the_recipe_back(fields):
    shape = architecture(Model(d_model=32, vocab_size=VOCAB, **fields))
    for target in TARGETS.values():
        if wrong := target.mismatches(shape):
            assert all(isinstance(text, str) and text for text in wrong)
        else:
            assert_told_back(target, fields)


@pytest.mark.parametrize("case", OURS)
def test_every_target_tells_what_fits_it(case):
    name, pattern, fields = OURS[case]
    target = TARGETS[name]
    assert all(condition.name for condition in target.conditions)
    model = {key: value for key, value in merged(MODEL, fields).items() if key not in ("d_model", "vocab_size")}
    assert target.mismatches(architecture(Model(**merged(MODEL, {"pattern": pattern, **fields})))) == []
    if not model.get("sublayers") and not fields.get("moe", {}).get("shared_expert_router"):  # which weights tell
        assert_told_back(target, {**model, "pattern": pattern})


def test_folders_in_the_way_and_unknown_options(run, good, tmp_path):
    for options, said in (({"dtype": "int8"}, "--dtype int8"), ({"target": "gpt2"}, "'gpt2': no table")):
        with pytest.raises(UserError, match=said):
            write(run, tmp_path / "new", **options)
    with pytest.raises(UserError, match="exists already"):
        write(run, good)
    with pytest.raises(UserError, match="the run folder exists"):
        read(good, run)


def test_a_checkpoint_of_ours_that_is_damaged_or_of_another_recipe(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    text = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(text.replace("pattern: (*E)x2", "pattern: (*E)x3"))
    with pytest.raises(UserError, match="has no model.layers.4.norm.weight"):
        write(copy, tmp_path / "hf")
    (copy / "recipe.yaml").write_text(text)
    path, = (copy / "checkpoints" / "step_3" / "state").glob("*.distcp")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="no good checkpoint"):
        write(copy, tmp_path / "hf")
    assert not list(tmp_path.glob("*hf*"))


def test_shards_and_lower_precision(run, good, tmp_path):
    """Small files hold what one file holds; in bfloat16 what it rounds to, and what must stay exact."""
    report = write(run, tmp_path / "shards", shard_bytes=10_000, verify=True)
    assert len(report["files"]) > 3 and report["verified"]["relative"] < 1e-5
    assert all((tmp_path / "shards" / name).stat().st_size < 20_000 for name in report["files"])
    whole = load_file(good / WEIGHTS)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == whole.keys()
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "shards" / file)[name], whole[name])
    load_theirs(tmp_path / "shards")
    report = write(run, tmp_path / "half", dtype="bfloat16", verify=True)
    assert report["verified"]["relative"] < 1e-5
    half = load_file(tmp_path / "half" / WEIGHTS)
    assert all(torch.equal(half[name], tensor.bfloat16()) for name, tensor in whole.items())
    (tmp_path / "shards" / index["weight_map"][EXPERT]).unlink()
    assert "missing" in refused(tmp_path / "shards")


def test_the_recipe_that_is_made_loads_and_tells_where_it_is_from(good, tmp_path):
    read(good, tmp_path / "run", "training.steps=7", "optim.lr=0.5")
    loaded = load_recipe(str(tmp_path / "run" / "recipe.yaml"))
    assert loaded.recipe.model.pattern == "(*E)x2" and loaded.recipe.training.steps == 7
    assert loaded.recipe.model.attention.qk_norm == "head" and loaded.recipe.model.norm_eps == 1e-3
    origins = json.loads((tmp_path / "run" / "origins.json").read_text())
    assert origins["training.steps"] == "command line" and "config.json" in origins["model.d_model"]
