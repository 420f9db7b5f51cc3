"""To Megatron-Core's layout and back, bit for bit, from any layout of ours, and what is refused."""

import io
import json
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader

from framework.convert.foreign_metadata import read_metadata
from framework.convert.megatron import Options, from_megatron, to_megatron
from framework.convert.megatron.common_file import read_common
from framework.convert.megatron.names import canonical
from framework.convert.megatron.state_files import _Planner
from framework.convert.transforms import GroupedHeads, their_shapes
from framework.errors import UserError
from framework.surgery import find_source
from tests.helpers.conversion import MODEL, assert_bit_equal, make_run, merged, reshard_on_rank, weights_of
from tests.helpers.megatron_cases import OURS


def write(run: Path, out: Path, **options) -> dict:
    return to_megatron(find_source(run), out, Options(**options))


@pytest.mark.parametrize("case", [case for case in OURS if case != "factors"])  # which are folded into weights
def test_there_and_back(case, tmp_path):
    pattern, fields = OURS[case]
    run = make_run(tmp_path / "run", pattern, **fields)
    report = write(run, tmp_path / "out")
    assert report["target"] == ("MambaModel" if "M" in pattern else "GPTModel")
    assert ("--spec megatron.core.models.mamba.mamba_layer_specs mamba_stack_spec" in report["arguments"]) == (
        "M" in pattern)
    back = from_megatron(tmp_path / "out", tmp_path / "back")
    assert back["model_class"] == report["target"] and back["cautions"] == []
    assert_bit_equal(weights_of(tmp_path / "back", 0), weights_of(run, 3))


@pytest.mark.parametrize("case", ["experts", "hybrid"])
def test_tensor_and_expert_parallel_in_between(case, ranks, tmp_path):
    """From a folder, through two ranks with tp 2 and ep 2, and back: the files hold the same."""
    pattern, fields = OURS[case]
    write(make_run(tmp_path / "run", pattern, **fields), tmp_path / "out")
    from_megatron(tmp_path / "out", tmp_path / "back", ("data.seq_len=16", "data.batch_size=2"))
    ranks.run(2, reshard_on_rank, tmp_path / "back", ("parallel.tp=2", "parallel.ep=2"))
    assert write(tmp_path / "back", tmp_path / "again")["step"] == 1
    from_megatron(tmp_path / "again", tmp_path / "twice")
    assert_bit_equal(weights_of(tmp_path / "twice", 0), weights_of(tmp_path / "run", 3))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.booleans())
@settings(max_examples=20, deadline=None)
def test_grouped_heads(groups, queries, width, bias):
    """Group by group: its query heads, its key head, its value head."""
    shapes = [(heads * width, *(() if bias else (2,))) for heads in (groups * queries, groups, groups)]
    ours = [torch.randn(shape) for shape in shapes]
    theirs, = GroupedHeads(width).to_theirs(ours)
    q, k, v = (tensor.unflatten(0, (-1, width)) for tensor in ours)
    heads = [head for group in range(groups)
             for head in (*q[group * queries : (group + 1) * queries], k[group], v[group])]
    assert torch.equal(theirs, torch.cat(heads)) and [tuple(theirs.shape)] == their_shapes(GroupedHeads(width), shapes)
    assert all(map(torch.equal, GroupedHeads(width).to_ours([theirs], shapes), ours))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder of a mixture of experts; the run is beside it."""
    folder = tmp_path_factory.mktemp("megatron")
    pattern, fields = OURS["experts"]
    write(make_run(folder / "run", pattern, **fields), folder / "out")
    return folder / "out"


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return shutil.copytree(good, tmp_path / "out")


def test_layers_alike_are_stacked_and_experts_stand_apart(good):
    """The layout is what Megatron-LM writes, each layer and expert in a part of its own."""
    entries = FileSystemReader(good / "release").read_metadata().state_dict_metadata
    experts = entries["decoder.layers.mlp.experts.experts.linear_fc1.weight"]
    assert tuple(experts.size) == (2, 4, 48, 32)
    assert sorted(tuple(chunk.offsets) for chunk in experts.chunks) == [
        (layer, expert, 0, 0) for layer in range(2) for expert in range(4)]
    assert "decoder.layers.mlp.experts.experts.linear_fc2._extra_state/shard_1.3_2.4" in entries
    assert "decoder.layers.self_attention.linear_qkv._extra_state/shard_0_2" in entries
    assert "decoder.layers.pre_mlp_layernorm.weight" in entries
    assert (good / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert read_common(good / "release" / "common.pt")["args"]["moe_router_topk"] == 2


def test_lower_precision_keeps_what_must_be_exact(tmp_path):
    pattern, fields = OURS["hybrid"]
    run = make_run(tmp_path / "run", pattern, **fields)
    write(run, tmp_path / "out", dtype="bfloat16")
    from_megatron(tmp_path / "out", tmp_path / "back")
    exact = ("dynamics.A_log", "dynamics.D", "dynamics.dt_bias", "selection_bias_E")
    assert_bit_equal(weights_of(tmp_path / "back", 0), {
        name: tensor if name.endswith(exact) else tensor.bfloat16().float()
        for name, tensor in weights_of(run, 3).items()})


def test_one_part_is_held_at_a_time(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "(*E)x3", moe={"num_experts": 6, "top_k": 2})
    made, lookup_object = [], _Planner.lookup_object

    def next_part(self, index):
        made.append(lookup_object(self, index))
        tensors = [each for each in made if torch.is_tensor(each)]
        assert not any(tensor.untyped_storage().size() for tensor in tensors[:-1])
        return made[-1]

    monkeypatch.setattr(_Planner, "lookup_object", next_part)
    write(run, tmp_path / "out")
    assert sum(torch.is_tensor(each) for each in made) == 3 + 3 * (5 + 2 * 6)


def test_without_arguments_shapes_and_overrides_tell(good, folder, tmp_path):
    path = folder / "release" / "common.pt"
    torch.save({"iteration": 3}, path)
    with pytest.raises(UserError, match="release: no arguments in common.pt.*; allowed: state model.attention.num"):
        from_megatron(folder, tmp_path / "back")
    with pytest.raises(UserError, match="state model.moe.top_k"):
        from_megatron(folder, tmp_path / "back", ("model.attention.num_heads=4",))
    report = from_megatron(folder, tmp_path / "back", ("model.attention.num_heads=4", "model.moe.top_k=2"))
    assert "holds no arguments" in report["cautions"][0]
    assert_bit_equal(weights_of(tmp_path / "back", 0), weights_of(good.parent / "run", 3))


def refused(folder: Path, *overrides: str) -> str:
    """What is said; it is one line, and there is no run, nor a part of one."""
    with pytest.raises(UserError) as error:
        from_megatron(folder, folder.parent / "runs" / "new", overrides)
    assert "\n" not in str(error.value) and not list((folder.parent).glob("runs/*new*"))
    return str(error.value)


def test_overrides_that_make_another_model_are_refused(folder, tmp_path):
    assert "model.norm_eps is 0.5; allowed: " in (said := refused(folder, "model.norm_eps=0.5"))
    assert said.endswith("as common.pt says")
    assert "parametrization changes what" in refused(
        folder, "parametrization.kind=mup", "parametrization.base_d_model=16")
    from_megatron(folder, tmp_path / "back", ("model.moe.load_balance_weight=0.02",))


@pytest.mark.parametrize("name", [".metadata", "common.pt", "metadata.json", "__0_0.distcp"])
def test_a_file_that_is_cut_or_missing_is_named(folder, name):
    path = folder / "release" / name
    content = path.read_bytes()
    for length in (0, 7, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert str(path if name != "__0_0.distcp" or length > 7 else path.parent) in refused(folder)
    path.unlink()
    assert str(path.parent) in refused(folder)


def test_a_bit_of_a_weight_that_flipped_is_found(folder):
    path = folder / "release" / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    place = read_metadata(folder / "release" / ".metadata").storage_data
    part = next(where for index, where in place.items() if index.fqn == "embedding.word_embeddings.weight")
    content[part.offset + part.length // 2] ^= 1
    path.write_bytes(content)
    assert f"{path}: missing or damaged: embedding.word_embeddings.weight" in refused(folder)


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_whatever_flips_in_what_is_pickled_is_read_or_refused(good, data):
    """Nothing but a UserError leaves the readers of pickles."""
    name, reader = data.draw(st.sampled_from([(".metadata", read_metadata), ("common.pt", read_common)]))
    content = bytearray((good / "release" / name).read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] ^= data.draw(st.integers(1, 255))
    path = good.parent / f"flipped{name}"
    path.write_bytes(content)
    try:
        reader(path)
    except UserError as error:
        assert "\n" not in str(error)


class Runs:
    """Touches a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_nothing_that_is_pickled_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    release, name, evil = folder / "release", "embedding.word_embeddings.weight", io.BytesIO()
    torch.save([Runs()], evil)
    metadata = pickle.loads((release / ".metadata").read_bytes())
    index, = (index for index in metadata.storage_data if index.fqn == name)
    place = metadata.storage_data[index] = replace(metadata.storage_data[index], length=len(evil.getvalue()))
    (release / ".metadata").write_bytes(pickle.dumps(metadata))
    content = bytearray((release / place.relative_path).read_bytes())
    content[place.offset : place.offset + place.length] = evil.getvalue()
    (release / place.relative_path).write_bytes(content)
    assert f"{name} cannot be read (UnpicklingError)" in refused(folder)
    torch.save({"args": Runs(), "iteration": 3}, release / "common.pt")
    assert read_common(release / "common.pt")["args"] is None
    (release / ".metadata").write_bytes(pickle.dumps(Runs()))
    assert ".metadata" in refused(folder)
    assert not (folder / "executed").exists()


def test_a_compressed_or_foreign_archive_is_refused(folder):
    path = folder / "release" / "common.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("common/data.pkl", pickle.dumps({"iteration": 3}) + b"\0" * 10**6)
    assert "common.pt: missing or damaged" in refused(folder)


@pytest.mark.parametrize(("content", "said"), [
    (None, "no latest_checkpointed_iteration.txt"), ("7", "iter_0000007"), ("../up", "allowed: a number, or release"),
    ("9" * 400, "allowed: a number, or release"), ("", "allowed: a number, or release"),
])
def test_which_checkpoint_is_newest(folder, content, said):
    tracker = folder / "latest_checkpointed_iteration.txt"
    tracker.unlink() if content is None else tracker.write_text(content)
    assert said in refused(folder)


@pytest.mark.parametrize(("changes", "said"), [
    ({"swiglu": False}, "expert"), ({"position_embedding_type": "learned_absolute"}, "position_embedding_type"),
    ({"add_bias_linear": True}, "add_bias_linear"), ({"moe_router_group_topk": 2}, "moe_router_group_topk"),
    ({"num_attention_heads": 3}, "3 attention heads"), ({"num_attention_heads": True}, "num_heads"),
    ({"norm_epsilon": "x"}, "norm_eps"), ({"moe_router_topk": 99}, "top_k"),
    ({"normalization": "L2"}, "normalization is 'L2'"), ({"moe_router_score_function": "relu"}, "score_function"),
    ({"multi_latent_attention": True}, "multi_latent_attention"), ({"rotary_base": [1]}, "cannot be read"),
])
def test_arguments_that_no_recipe_is(folder, changes, said):
    path = folder / "release" / "common.pt"
    common = torch.load(path, weights_only=False)
    for name, value in changes.items():
        setattr(common["args"], name, value)
    torch.save(common, path)
    assert said in refused(folder)


WHOLE = {"decoder.layers.0.mlp.experts.experts.0.linear_fc1.weight_w": (3, 2),
         "decoder.layers.0.mlp.experts.experts.0.linear_fc1.weight_v": (3, 2),
         "decoder.layers.0.mlp.experts.experts.1.linear_fc1.weight_w": (3, 2),
         "decoder.layers.0.mlp.experts.experts.1.linear_fc1.weight_v": (3, 2)}


def test_names_of_each_layout_are_the_same():
    name = "decoder.layers.0.mlp.experts.experts.linear_fc1.weight"
    assert canonical(WHOLE)[name].shape == (2, 6, 2)
    assert canonical({"decoder.layers.mlp.experts.experts.linear_fc1.weight": (1, 2, 6, 2)})[name].shape == (2, 6, 2)
    for key in WHOLE:
        with pytest.raises(UserError, match="expert . part . is missing|expert ., part . is missing"):
            canonical({other: shape for other, shape in WHOLE.items() if other != key})
        with pytest.raises(UserError, match="its parts have shapes"):
            canonical(WHOLE | {key: (3, 3)})
    with pytest.raises(UserError, match="stands twice"):
        canonical({"decoder.layers.x": (1, 2), "decoder.layers.0.x": (2,)})


# Fields of the recipe, and what is said of it.
UNFIT = [
    ("(*-)x2", {"attention": {"qk_norm": "full"}}, "GPTModel: model.attention.qk_norm is 'full'"),
    ("(*-)x2", {"attention": {"window": 4}}, "model.attention.window is 4"),
    ("(*-)x2", {"ffn": {"activation": "relu"}}, "model.ffn.activation is 'relu'"),
    ("(*-)x2", {"attention": {"rope_base": 10.5}}, "rope_base is no whole number"),
    ("(*-)x2", {"attention": {"rope_scaling": {"original_seq_len": 16}}}, "rope_scaling is another one"),
    ("(*-)x2", {"norm": "layernorm", "attention": {"qk_norm": "head"}}, "beside model.norm 'layernorm'"),
    ("(*E)x2", {"moe": {"top_k": 1}}, "model.moe.normalize_top_k does not fit"),
    ("(*E)x2", {"moe": {"router": "sigmoid", "normalize_top_k": False}}, "model.moe.normalize_top_k does not fit"),
    ("(*E)x2", {"moe": {"router": "expert_choice"}}, "experts choose tokens"),
    ("(*E)x2", {"moe": {"selection_bias_rate": 1e-3}}, "selection_bias_rate is not 0"),
    ("(*E)x2", {"moe": {"output_norm": True}}, "model.moe.output_norm is true"),
    ("*E*-", {"moe": {"activation": "gelu"}}, "model.moe.activation is 'gelu' beside 'swiglu'"),
    ("*EWE", {"sublayers": {"W": {"kind": "attention", "rope_base": 4}}}, "rope_base of attention sublayers"),
    ("[*E]x2", {}, "parallel branches"),
    ("mE", {}, "MambaModel: sublayer 1 of 2 is m"),
    ("ME", {}, "model.norm_eps is not that"),
    ("ME", {"norm_eps": 1e-5, "mamba": {"d_conv": 3}}, "model.mamba.d_conv is 3"),
    ("M*", {"norm_eps": 1e-5, "attention": {"qk_norm": "head"}}, "MambaModel: model.attention.qk_norm is 'head'"),
]


@pytest.mark.parametrize(("pattern", "fields", "said"), UNFIT)
def test_a_recipe_that_it_cannot_be(pattern, fields, said):
    from framework.convert.megatron.target import choose
    from framework.recipe.architecture import architecture
    from framework.recipe.schema import Model

    with pytest.raises(UserError) as error:
        choose(architecture(Model(**merged(MODEL, {"pattern": pattern, **fields}))), "te")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_of_ours_that_lacks_a_tensor_is_refused_in_a_line(good, tmp_path):
    copy = shutil.copytree(good.parent / "run", tmp_path / "run")
    text = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(text.replace("pattern: (*E)x2", "pattern: (*E)x3"))
    with pytest.raises(UserError, match="has no model.layers.4.norm.weight") as error:
        write(copy, tmp_path / "out")
    assert "\n" not in str(error.value) and not list(tmp_path.glob("*out*"))


def test_commands_say_what_was_done_and_refuse_in_a_line(good, upmix, tmp_path):
    run = good.parent / "run"
    code, out, _ = upmix("convert", "to-megatron", run, tmp_path / "out", "--spec", "local", "--json")
    report = json.loads(out)
    assert code == 0 and report["spec"] == "local" and "--moe-router-topk 2" in report["arguments"]
    code, out, _ = upmix("convert", "from-megatron", tmp_path / "out", "new", "--runs-dir", tmp_path)
    assert code == 0 and "GPTModel" in out and "data.corpus" in out
    assert_bit_equal(weights_of(tmp_path / "new", 0), weights_of(run, 3))
    for words, said in (
        (("to-megatron", run, tmp_path / "out"), "exists already"),
        (("to-megatron", run, tmp_path / "no", "--spec", "apex"), "--spec apex"),
        (("to-megatron", run, tmp_path / "no", "--dtype", "int8"), "--dtype int8"),
        (("from-megatron", tmp_path, "other", "--runs-dir", tmp_path), "no latest_checkpointed_iteration.txt"),
        (("from-megatron", tmp_path / "none", "other", "--runs-dir", tmp_path), "none: missing; allowed: a folder"),
        (("from-megatron", __file__, "other", "--runs-dir", tmp_path), "a file; allowed: a folder"),
        (("from-nano", tmp_path, "other", "--runs-dir", tmp_path), "no .metadata; allowed: a checkpoint"),
        (("from-megatron", tmp_path / "out", "new", "--runs-dir", tmp_path), "exists"),
    ):
        code, out, err = upmix("convert", *words)
        assert code == 2 and said in err and not out and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "no").exists()
