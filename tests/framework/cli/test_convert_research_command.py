"""`upmix convert from-llm-random` and `from-nano` as a person uses them, with the commands that their page quotes."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.research_cases import LIZRD, NANO, made, save, save_sharded

PAGE = Path(__file__).parents[3] / "docs" / "convert.md"


@pytest.fixture
def give(upmix, tmp_path, monkeypatch):
    save(made(LIZRD["three matrices, no biases"][0]), tmp_path / "7.pt")
    save_sharded(made(NANO["grouped, gated, scaled"][0]), tmp_path / "step_3")
    monkeypatch.chdir(tmp_path)
    return lambda *words: upmix("convert", *words)


def test_the_pages_commands_work(give, tmp_path):
    commands = [shlex.split(line)[2:] for line in PAGE.read_text().splitlines()
                if re.match("    upmix convert from-(llm-random|nano) ", line)]
    assert len(commands) == 2
    for words in commands:
        code, out, error = give(*words)
        assert (code, error) == (0, "") and f"runs/{words[2]}: step 0" in out
        assert (tmp_path / "runs" / words[2] / "checkpoints" / "step_0" / "manifest.json").is_file()


def test_a_report_is_one_json_object(give, tmp_path):
    code, out, error = give("from-llm-random", "7.pt", str(tmp_path / "here"), "model.norm=layernorm", "--json")
    report = json.loads(out)
    assert (code, error, report["layout"], report["pattern"]) == (0, "", "llm-random", "(*-)x2")
    assert report["run"] == str(tmp_path / "here") and not report["has_data"]


@pytest.mark.parametrize(("words", "said"), [
    (("from-llm-random", "7.pt", "new"), "weights do not tell model.norm=..."),
    (("from-llm-random", "nowhere.pt", "new"), "nowhere.pt: missing"),
    (("from-llm-random", "7.pt", ".new"), "no name for a run"),
    (("from-nano", "7.pt", "new"), "not every encoder.blocks.N.*"),
    (("from-nano", "step_3", "new"), "model.attention.num_heads=..."),
])
def test_mistakes_are_one_line_and_leave_nothing(give, tmp_path, words, said):
    code, out, error = give(*words)
    assert code == 2 and out == "" and error.count("\n") == 1 and said in error, error
    assert not (tmp_path / "runs").exists()


