"""`upmix convert` as a person uses it, and every command that its page quotes."""

import json
import re
import shlex
from pathlib import Path

import pytest

from framework.convert.architectures import TARGETS
from tests.helpers.conversion import files_of, make_run

PAGE = Path(__file__).parents[3] / "docs" / "convert.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """runs/mine: a run with a checkpoint of step 3; runs/hybrid: one without attention."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("convert")
    make_run(folder / "runs" / "mine", "(*E)x2", attention={"qk_norm": "head"})
    make_run(folder / "runs" / "hybrid", "(ME)x2")
    return folder


@pytest.fixture
def give(upmix, folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda *words: upmix("convert", *words)


def test_the_pages_commands_work_in_their_order(give, folder):
    commands = [shlex.split(line.strip())[2:] for line in PAGE.read_text().splitlines()
                if re.match("    upmix convert (to|from)-(hf|megatron) ", line)]
    assert len(commands) == 7
    for words in commands:
        if any(word.startswith("data.corpus") for word in words):
            words = [word for word in words if "=" not in word]  # the data of a page's example is not here
        code, out, error = give(*words)
        assert code == 0, (words, error)
        if "--verify" in words:
            assert re.search(r"verified: .* at most \S+, \S+ of the largest", out)
    assert (folder / "runs" / "theirs" / "recipe.yaml").is_file()


def test_the_pages_table_has_every_target():
    rows = re.findall(r"^\| `(\w+)`", PAGE.read_text(), re.MULTILINE)
    assert rows == list(TARGETS)


def test_reports_are_one_json_object(give, folder):
    code, out, error = give("to-hf", "runs/mine/checkpoints/step_3", "json/hf", "--shard-size", "10K", "--dtype",
                            "bfloat16", "--target", "qwen3_moe", "--json")
    report = json.loads(out)
    assert (code, error, report["target"], report["step"]) == (0, "", "qwen3_moe", 3) and len(report["files"]) > 1
    assert report["num_tensors"] == len(files_of(folder / "json" / "hf"))
    code, out, error = give("from-hf", "json/hf", str(folder / "json" / "back"), "training.steps=5", "--json")
    report = json.loads(out)
    assert (code, report["run"], report["pattern"]) == (0, str(folder / "json" / "back"), "(*E)x2")
    assert (folder / "json" / "back" / "checkpoints" / "step_0" / "manifest.json").is_file()


@pytest.mark.parametrize(("words", "said"), [
    (("to-hf", "nowhere", "new"), "nowhere: no run here"),
    (("to-hf", "runs/mine", "new", "--step", "4"), "no checkpoint of step 4; there are: 3"),
    (("to-hf", "runs/mine", "runs"), "runs: exists already"),
    (("to-hf", "runs/mine", "new", "--target", "mixtral"), "model.attention.qk_norm is 'head' (allowed: 'none')"),
    (("to-hf", "runs/mine", "new", "--target", "mixtrl"), "nearest: mixtral"),
    (("to-hf", "runs/mine", "new", "--dtype", "int8"), "allowed: float32, bfloat16, float16"),
    (("to-hf", "runs/mine", "new", "--shard-size", "0"), "--shard-size 0: no size"),
    (("to-hf", "runs/mine", "new", "--identity-attention"), "--identity-attention: this qwen3_moe generates as it is"),
    (("from-hf", "nowhere", "new"), "nowhere: no folder"),
    (("from-hf", "runs", "new"), "config.json: missing"),
    (("from-hf", "runs", "mine"), "the run folder exists"),
    (("from-hf", "runs", ".new"), "no name for a run"),
])
def test_mistakes_are_one_line_and_leave_nothing(give, folder, words, said):
    before = sorted(folder.rglob("*"))
    code, out, error = give(*words)
    assert code == 2 and out == "" and error.count("\n") == 1 and said in error, error
    assert sorted(folder.rglob("*")) == before


def test_verification_needs_transformers(give, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, error = give("to-hf", "runs/mine", "new", "--verify")
    assert code == 2 and "pip install 'upmix[hf]'" in error
