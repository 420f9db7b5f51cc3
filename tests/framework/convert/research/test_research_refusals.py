"""What no run of ours can be, what nobody told, and files that are damaged or dangerous: one line, nothing left."""

import pickle
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from framework.convert.research import from_llm_random, from_nano
from framework.errors import UserError
from tests.helpers.conversion import assert_bit_equal, weights_of
from tests.helpers.research_cases import LIZRD, NANO, attention, lizrd, made, save, save_sharded
from tests.helpers.research_models import LizrdExperts, lizrd_dense

BLOCK = "encoder.blocks.block_1.block.residual_{}.layer."
MATRIX = BLOCK.format("attention") + "attention.output_projection.weight"


def refused(read, source: Path, *overrides: str) -> str:
    """What is said; it is one line, and there is no run, nor a part of one."""
    runs = source.parent / "runs"
    with pytest.raises(UserError) as error:
        read(source, runs / "new", overrides)
    assert "\n" not in str(error.value)
    assert not runs.exists() or not list(runs.iterdir())
    return str(error.value)


@pytest.fixture(scope="module")
def dense() -> dict[str, torch.Tensor]:
    return made(LIZRD["dense"][0]).state_dict()


@pytest.mark.parametrize(("change", "said"), [
    (lambda state: state.pop(MATRIX), "block_1.block.residual_attention.layer.attention.* is no sublayer of ours"),
    (lambda state: state.pop("head.unembedding.head.weight"), "head.unembedding.head.weight is missing"),
    (lambda state: state.update(extra=torch.ones(1)), "extra is unexpected"),
    (lambda state: state.update({MATRIX: torch.ones(32, 31)}), f"{MATRIX} has shape [32, 31]; allowed: [32, 32]"),
    (lambda state: state.update({MATRIX: torch.ones(32, 32, dtype=torch.int64)}), f"{MATRIX} is torch.int64"),
    (lambda state: state.update({MATRIX: torch.ones(1).expand(2**20, 2**20)}), "and fewer bytes"),
    (lambda state: state.update({"embedding_layer.layers.1.layer.weight": torch.ones(24, 32)}),
     "embedding_layer.layers.1.layer.weight: learned absolute positions"),
    (lambda state: state.update({BLOCK.format("feedforward") + "feedforward.logging_ff_pre_relu.bias": torch.ones(48)}),
     "logging_ff_pre_relu.bias holds more than 0"),
    (lambda state: state.pop("head.unembedding.head_norm.weight"), "no norm before the head"),
    (lambda state: state.pop(BLOCK.format("attention") + "pre_norm.weight"), "pre_norm.weight is missing"),
    (lambda state: state.update({"encoder.blocks.block_3.block.residual_attention.layer.pre_norm.weight":
                                 torch.ones(32)}), "not every encoder.blocks.block_N"),
    (lambda state: state.update({MATRIX: "text"}), "is no tensor"),
    (lambda state: state.clear(), "no model in it"),
])
def test_models_that_are_not_ours(change, said, dense, tmp_path):
    state = dict(dense)
    change(state)
    torch.save({"model": state}, tmp_path / "7.pt")
    text = refused(from_llm_random, tmp_path / "7.pt")
    assert said in text and text.startswith(str(tmp_path / "7.pt"))


def test_a_shift_that_a_norm_of_ours_has_not(tmp_path):
    model = made(LIZRD["swiglu, own norm"][0])
    nn.init.ones_(model.get_parameter(BLOCK.format("attention") + "pre_norm.b"))
    assert "pre_norm.b holds more than 0" in refused(from_llm_random, save(model, tmp_path / "7.pt"))


def test_all_that_weights_do_not_tell_is_asked_for_at_once(tmp_path):
    torch.save(made(NANO["experts"][0]).state_dict(), tmp_path / "model.pt")
    asked = {key: value for key, _, value in (text.partition("=") for text in NANO["experts"][2])}
    said = refused(from_nano, tmp_path / "model.pt")
    assert len(asked) == 7 and all(f"{key}=..." in said for key in asked)
    for key in asked:
        said = refused(from_nano, tmp_path / "model.pt", *(text for text in NANO["experts"][2] if key not in text))
        assert f"{key}=..." in said and said.count("=...") == 1 + (key == "model.norm")
    model = made(lambda: lizrd("layernorm", attention=attention(rope=False), feedforward=lambda: lizrd_dense(False)))
    said = refused(from_llm_random, save(model, tmp_path / "7.pt"))
    assert "model.attention.num_heads=..." in said and "model.attention.rope=..." in said and said.count("=...") == 2


@pytest.mark.parametrize(("override", "said"), [
    ("model.ffn.activation=swiglu", "model.ffn.activation is 'swiglu'; allowed: 'relu'"),
    ("model.attention.num_heads=8", "model.attention.num_heads is 8; allowed: 4"),
    ("model.norm=rmsnorm", "model.norm is 'rmsnorm'; allowed: 'layernorm'"),
    ("model.pattern='*-'", "model.pattern is '*-'; allowed: '(*-)x2'"),
    ("model.attention.rope_base=20000", "rope.cos is not that of model.attention.rope_base=20000"),
    ("model.attention.window=4", "model.attention.window is 4; allowed: null"),
    ("model.multipliers.logits=2.0", "model.multipliers.logits is 2.0; allowed: 1.0"),
    ("parametrization={kind: mup, base_d_model: 16}", "parametrization changes what the weights mean"),
    ("model.attention.nothing=1", "command line: model.attention.nothing: unknown key"),
    ("data.tokenizer=nowhere.model", "nowhere.model"),
])
def test_overrides_that_contradict_the_weights(override, said, dense, tmp_path):
    torch.save(dense, tmp_path / "7.pt")
    assert said in refused(from_llm_random, tmp_path / "7.pt", override)


@pytest.mark.parametrize("heads", ["3", "0", "64", "many"])
def test_heads_that_cannot_be(heads, tmp_path):
    make, _, stated = NANO["dense"]
    torch.save(made(make).state_dict(), tmp_path / "model.pt")
    refused(from_nano, tmp_path / "model.pt", *stated, f"model.attention.num_heads={heads}")


def test_expert_choice_is_no_token_choice(tmp_path):
    model = made(lambda: lizrd("layernorm", feedforward=lambda: LizrdExperts("relu", 1)))
    state = {name.replace("router.gate", "expert_gating.gate"): tensor for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "7.pt")
    assert "feedforward.* is no sublayer of ours" in refused(from_llm_random, tmp_path / "7.pt")


class Runs:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("place", ["model", "optimizer", "file"])
def test_a_pickle_runs_nothing(place, dense, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if place == "file":
        (tmp_path / "7.pt").write_bytes(pickle.dumps(Runs()))
    else:
        torch.save({"model": dense} | {place: Runs()}, tmp_path / "7.pt")
    said = refused(from_llm_random, tmp_path / "7.pt")
    assert not (tmp_path / "executed").exists()
    assert ("names" in said) == (place != "file") and "7.pt" in said


def test_metadata_of_a_folder_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "step_3").mkdir()
    (tmp_path / "step_3" / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": Runs()}))
    assert "step_3/.metadata" in refused(from_nano, tmp_path / "step_3")
    assert not (tmp_path / "executed").exists()


def flipped(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def test_no_flip_of_a_bit_changes_weights(dense, tmp_path):
    """It is refused, or was where nothing depends on it."""
    draw = random.Random(0)
    torch.save(dense, tmp_path / "7.pt")
    content = (tmp_path / "7.pt").read_bytes()
    from_llm_random(tmp_path / "7.pt", tmp_path / "right")
    num_refused = 0
    for number in range(12):
        (tmp_path / "8.pt").write_bytes(flipped(content, draw))
        try:
            from_llm_random(tmp_path / "8.pt", tmp_path / str(number))
        except UserError as error:
            assert "8.pt" in str(error) and "\n" not in str(error)
            num_refused += 1
        else:
            assert_bit_equal(weights_of(tmp_path / str(number), 0), weights_of(tmp_path / "right", 0))
    assert num_refused >= 6


@pytest.mark.parametrize("length", [0, 5, 1000, -1])
def test_truncated_files_are_named(length, dense, tmp_path):
    torch.save(dense, tmp_path / "7.pt")
    (tmp_path / "7.pt").write_bytes((tmp_path / "7.pt").read_bytes()[:length])
    assert "7.pt: truncated or damaged" in refused(from_llm_random, tmp_path / "7.pt")


@pytest.mark.parametrize(("damage", "said"), [
    (lambda folder: (folder / ".metadata").unlink(), ".metadata"),
    (lambda folder: (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:500]), ".metadata"),
    (lambda folder: (folder / "__0_0.distcp").unlink(), "all files 0 bytes"),
    (lambda folder: (folder / "__0_0.distcp").write_bytes(
        flip_weights((folder / "__0_0.distcp").read_bytes())), "__0_0.distcp: missing or damaged"),
])
def test_damaged_folders_are_named(damage, said, tmp_path):
    make, _, stated = NANO["grouped, gated, scaled"]
    folder = save_sharded(made(make), tmp_path / "step_3")
    damage(folder)
    assert said in refused(from_nano, folder, *stated)


def flip_weights(content: bytes) -> bytes:
    """One bit of the matrix that is read last, whose numbers are found in the file."""
    matrix = made(NANO["grouped, gated, scaled"][0]).encoder.blocks[1].ff_layer.layer.ff_post_act.weight
    at = content.index(matrix.detach().numpy().tobytes())
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def test_what_is_not_there_or_of_the_other_kind(tmp_path):
    assert "missing" in refused(from_llm_random, tmp_path / "7.pt")
    assert "a folder" in refused(from_llm_random, tmp_path)
    assert "missing" in refused(from_nano, tmp_path / "step_3")
    assert ".metadata" in refused(from_nano, tmp_path)
