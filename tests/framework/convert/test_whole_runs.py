"""Runs of other layouts, factors of the parametrization, tokenizers, and what may be done with an imported run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from framework.convert.first_checkpoint import _Lazy
from framework.convert.tokenizer import byte_pairs, same
from framework.convert.weights import Weights
from framework.data import load_tokenizer
from framework.errors import UserError
from framework.recipe import load_recipe
from tests.helpers.conversion import (
    THEIRS,
    assert_bit_equal,
    assert_same_logits,
    files_of,
    load_theirs,
    make_run,
    read,
    reshard_on_rank,
    their_case,
    weights_of,
    write,
)
from tests.helpers.runs import train_on_rank, write_corpus
from tests.helpers.upcycling import state

QUICK = ("qwen3_moe", "granitemoehybrid", "jamba")
SHARDED = [pytest.param(case, marks=() if case in QUICK else pytest.mark.full) for case in THEIRS]


@pytest.mark.parametrize("case", SHARDED)
def test_tensor_and_expert_parallel_in_between(case, ranks, tmp_path):
    """From transformers, through two ranks with tp 2 and ep 2, and back."""
    _, model = their_case(case)
    model.save_pretrained(tmp_path / "hf")
    read(tmp_path / "hf", tmp_path / "run", "data.seq_len=16", "data.batch_size=2")
    ranks.run(2, reshard_on_rank, tmp_path / "run", ("parallel.tp=2", "parallel.ep=2"))
    files = json.loads((tmp_path / "run" / "checkpoints" / "step_1" / "manifest.json").read_text())["files"]
    assert {name[:9] for name in files if "distcp" in name} == {"state/__0", "state/__1"}
    assert write(tmp_path / "run", tmp_path / "again")["step"] == 1
    assert_bit_equal(files_of(tmp_path / "again"), files_of(tmp_path / "hf"))


MUP = {"kind": "mup", "base_d_model": 16, "base_model": {"attention": {"head_dim": 4}, "ffn": {"d_ff": 24}}}
FACTORS = {"embedding": 3.0, "attention": 0.4, "residual": 0.3, "logits": 0.25}


@pytest.mark.parametrize(("pattern", "target", "fields"), [
    ("(*E)x2", "qwen3_moe", dict(attention={"qk_norm": "head"}, multipliers=FACTORS, tie_embeddings=True)),
    ("*-*E", "qwen2_moe", dict(moe={"num_shared_experts": 1}, attention={"qkv_bias": True}, multipliers=FACTORS)),
    ("ME*E", "granitemoehybrid", dict(multipliers=FACTORS)),
    ("mm", "mamba", dict(multipliers=FACTORS, tie_embeddings=True)),
])
@pytest.mark.parametrize("parametrization", [{}, MUP], ids=["standard", "mup"])
def test_factors_are_folded_into_weights(pattern, target, fields, parametrization, tmp_path):
    other = {"parametrization": parametrization} if parametrization else None
    run = make_run(tmp_path / "run", pattern, other, **fields)
    report = write(run, tmp_path / "hf", verify=True)
    assert report["target"] == target and report["verified"]["relative"] <= 1e-5
    told = any("folded" in text for text in report["cautions"])
    assert told == (target != "granitemoehybrid" or bool(parametrization))
    assert_same_logits(run, load_theirs(tmp_path / "hf"))


HYBRIDS = {
    "jamba": ("(mEm-)x2", dict(mamba={"inner_norms": True}, moe={"normalize_top_k": False, "d_expert": 48})),
    "granitemoehybrid": ("(ME)x2", dict(moe={"num_shared_experts": 1}, multipliers=FACTORS)),
    "nemotron_h": ("(ME)x2", dict(moe={"router": "sigmoid", "activation": "relu2"})),
}


@pytest.mark.parametrize("target", HYBRIDS)
def test_an_identity_layer_lets_hybrids_without_attention_generate(target, tmp_path):
    from framework.model import generate
    from framework.training import load_run

    pattern, fields = HYBRIDS[target]
    run = make_run(tmp_path / "run", pattern, **fields)
    report = write(run, tmp_path / "hf", identity_attention=True, verify=True)
    assert report["target"] == target and "zeros" in report["cautions"][-1]
    theirs = load_theirs(tmp_path / "hf")
    found = theirs.generate(torch.tensor([[5, 9, 30]]), max_new_tokens=12, do_sample=False, use_cache=True)
    assert found[0, 3:].tolist() == list(generate(load_run(run).model, [5, 9, 30], 12, temperature=0.0))
    read(tmp_path / "hf", tmp_path / "back")
    assert_same_logits(tmp_path / "back", theirs)
    with pytest.raises(UserError, match="generates as it is"):
        write(tmp_path / "back", tmp_path / "more", identity_attention=True)


@pytest.mark.parametrize(("pattern", "kept", "fields"), [
    ("MM", ("A_log", ".D", "dt_bias"), {}),
    ("*E", ("e_score_correction_bias",), dict(attention={"qk_norm": "head"}, moe={
        "router": "sigmoid", "selection_bias_rate": 1e-3, "num_shared_experts": 1})),
])
def test_what_stays_float32(pattern, kept, fields, tmp_path):
    run = make_run(tmp_path / "run", pattern, **fields)
    write(run, tmp_path / "whole")
    assert write(run, tmp_path / "half", dtype="bfloat16", verify=True)["verified"]["relative"] <= 1e-5
    whole, half = files_of(tmp_path / "whole"), files_of(tmp_path / "half")
    for name, tensor in whole.items():
        assert half[name].dtype == (torch.float32 if name.endswith(kept) else torch.bfloat16), name
        assert torch.equal(half[name], tensor.to(half[name].dtype))


def test_verification_sees_a_wrong_weight(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "(*E)x2")
    right = Weights.value
    monkeypatch.setattr(Weights, "value", lambda self, tensor: right(self, tensor) * (
        1.001 if tensor.name.endswith("experts.3.w2.weight") else 1.0))
    with pytest.raises(UserError, match="--verify: logits in transformers differ by"):
        write(run, tmp_path / "hf", verify=True)
    assert not list(tmp_path.glob("*hf*"))


def test_one_piece_is_held_at_a_time(tmp_path, monkeypatch):
    """A model of many layers is never whole in memory: a shard and a piece are, or a tensor and a piece."""
    run = make_run(tmp_path / "run", "(*-)x12", d_model=64, ffn={"d_ff": 256})
    held, made = [], []
    value, lookup_object = Weights.value, _Lazy.lookup_object

    def read_piece(self, tensor):
        held.append(sum(each.nbytes for each in self._last[1]) if self._last else 0)
        return value(self, tensor)

    def next_tensor(self, index):
        made.append(lookup_object(self, index))
        assert not any(tensor.untyped_storage().size() for tensor in made[:-1])
        return made[-1]

    monkeypatch.setattr(Weights, "value", read_piece)
    monkeypatch.setattr(_Lazy, "lookup_object", next_tensor)
    assert len(write(run, tmp_path / "hf", shard_bytes=200_000)["files"]) > 10
    assert max(held) <= max(tensor.nbytes for tensor in files_of(tmp_path / "hf").values())
    read(tmp_path / "hf", tmp_path / "back")
    assert len(made) == 4 * len(weights_of(run, 3))
    assert_bit_equal(weights_of(tmp_path / "back", 0), weights_of(run, 3))


@pytest.fixture(scope="module")
def trained(ranks, tmp_path_factory) -> tuple[Path, Path]:
    """A run with a tokenizer, and the folder made of it."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = {
        "model": {"pattern": "(*E)x2", "d_model": 32, "vocab_size": 384, "attention": {"num_heads": 2},
                  "moe": {"num_experts": 4, "top_k": 2, "d_expert": 16}},
        "data": {"corpus": str(write_corpus(folder / "corpus")), "seq_len": 16, "batch_size": 8,
                 "validation_fraction": 0.2},
        "training": {"steps": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert ranks.run(1, train_on_rank, folder / "recipe.yaml", folder / "run", (), False, None) == [0]
    write(folder / "run", folder / "hf", verify=True)
    return folder / "run", folder / "hf"


def test_transformers_reads_the_tokenizer(trained):
    from transformers import AutoTokenizer

    run, folder = trained
    ours, theirs = load_tokenizer(run / "tokenizer.model"), AutoTokenizer.from_pretrained(folder)
    text = (run.parent / "corpus" / "3.txt").read_text() + " Zażółć\t\u4f60\n"
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text and theirs.eos_token_id == ours.eod
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == ours.eod


def test_generation_in_transformers_goes_on_as_ours(trained):
    from framework.model import generate
    from framework.training import load_run

    run, folder = trained
    ids = [5, 9, 300]
    mine = list(generate(load_run(run).model, ids, 6, temperature=0.0))
    theirs = load_theirs(folder).generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)
    assert theirs[0, 3:].tolist() == mine[: theirs.shape[1] - 3]


def test_a_tokenizer_that_cannot_be_told_is_left_to_its_own_file(trained, tmp_path, monkeypatch):
    run, _ = trained
    tokenizer = load_tokenizer(run / "tokenizer.model")
    assert same(tokenizer, byte_pairs(tokenizer))
    from tokenizers import normalizers

    other = byte_pairs(tokenizer)
    other.normalizer = normalizers.Lowercase()
    assert not same(tokenizer, other)
    monkeypatch.setattr("framework.convert.tokenizer.byte_pairs", lambda tokenizer: other)
    report = write(run, tmp_path / "hf")
    assert "tokenizer.model alone" in report["tokenizer"] and not (tmp_path / "hf" / "tokenizer.json").exists()


def test_an_imported_run_is_trained_evaluated_and_upcycled_from(trained, ranks, tmp_path, monkeypatch):
    from framework.data import open_data
    from framework.training.data_state import refuse_other_data

    run, folder = trained
    monkeypatch.setenv("UPMIX_DATA", str(run.parent / "data"))
    path = tmp_path / "new"
    overrides = (f"data.corpus={run.parent / 'corpus'}", "data.validation_fraction=0.2", "data.seq_len=16",
                 "data.batch_size=8", "training.steps=2")
    report = read(folder, path, *overrides)
    assert report["has_data"] and report["tokenizer"] == "tokenizer.model"
    recipe = load_recipe(str(path / "recipe.yaml")).recipe
    refuse_other_data(open_data(recipe.data, recipe.model.vocab_size, recipe.training.seed), path)
    before = state(path)
    assert all(not tensor.any() for name, tensor in before.items() if name.startswith("optim."))
    assert_bit_equal({name: before[name] for name in before if name.startswith("model.")}, weights_of(run, 2))
    copy = run.parent / "recipe_back.yaml"  # whose folder has the data
    shutil.copyfile(path / "recipe.yaml", copy)
    assert ranks.run(1, train_on_rank, copy, path, (), True, None) == [0]
    assert (path / "DONE").read_text() == "2\n"
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]


def test_the_tokenizer_that_can_be_read_is_taken(trained, tmp_path):
    _, folder = trained
    other = shutil.copytree(folder, tmp_path / "hf")
    (other / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # another library's
    assert read(other, tmp_path / "new")["tokenizer"] == "tokenizer.json"
    assert (tmp_path / "new" / "tokenizer_config.json").is_file()
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        read(other, tmp_path / "newer")
    assert not (tmp_path / "newer").exists()


def test_a_tokenizer_of_more_tokens_than_the_model_knows_is_refused(trained, tmp_path):
    write(make_run(tmp_path / "run", "(*E)x2", attention={"qk_norm": "head"}), tmp_path / "hf")
    shutil.copy(trained[1] / "tokenizer.json", tmp_path / "hf")
    with pytest.raises(UserError, match=r"tokenizer\.json: 384 entries, and the model knows \d+; allowed"):
        read(tmp_path / "hf", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_data_the_run_holds_its_tokenizer(trained, tmp_path):
    _, folder = trained
    report = read(folder, tmp_path / "new")
    assert not report["has_data"] and (tmp_path / "new" / "tokenizer.model").is_file()
    assert list(json.loads((tmp_path / "new" / "data.json").read_text())) == ["tokenizer_sha256"]
