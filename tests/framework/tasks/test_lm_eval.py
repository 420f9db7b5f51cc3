"""The package itself, on tasks that need no network; skipped where it is not installed."""

import functools
import json
import shutil

import pytest
import yaml

from tests.helpers.conversion import make_run, write

pytest.importorskip("lm_eval")

WORDS = ["import", "def", "return", "class", "self", "None", "True", "while"]
TASKS = {
    "choice": dict(output_type="multiple_choice", doc_to_choice="{{choices}}", doc_to_target="answer",
                   metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}]),
    "rolling": dict(output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{question}}",
                    metric_list=[{"metric": "byte_perplexity"}]),
    "written": dict(output_type="generate_until", doc_to_target="{{choices[answer]}}",
                    generation_kwargs={"until": ["\n"], "max_gen_toks": 5}, metric_list=[{"metric": "exact_match"}]),
    "sampled": dict(output_type="generate_until", doc_to_target="x", metric_list=[{"metric": "exact_match"}],
                    generation_kwargs={"until": ["\n"], "max_gen_toks": 5, "do_sample": True}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with tasks, a run, the same exported, and a tokenizer for both."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("lm_eval")
    documents = [{"question": f"{WORDS[number % 8]} x =" * (1 + number % 4), "answer": number % 3,
                  "choices": [WORDS[(number + step) % 8] for step in range(3)]} for number in range(7)]
    (folder / "data.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / "tasks").mkdir()
    for name, settings in TASKS.items():
        task = {"task": f"tiny_{name}", "dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}",
                "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}}} | settings
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task))
    letters = sorted({*"".join(WORDS), *" x=\n"})
    engine = Tokenizer(models.BPE({letter: number for number, letter in enumerate(["</s>", *letters])}, []))
    engine.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    engine.add_special_tokens(["</s>"])
    run = make_run(folder / "run", "(*E)x2", attention={"qk_norm": "head"})
    engine.save(str(run / "tokenizer.json"))
    write(run, folder / "hf")
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_live_model_gets_what_the_exported_one_does(place, upmix, offline):
    pytest.importorskip("accelerate")
    words = "--tasks", "tiny_choice,tiny_rolling,tiny_written", "--task-path", place / "tasks", "--limit", 6, "--json"
    found = {}
    for folder in ("run", "hf"):
        code, out, error = upmix("eval", place / folder, *words)
        assert code == 0, error
        found[folder] = json.loads(out)
    assert found["run"]["step"] == 3 and found["run"]["val_loss"] is None  # the recipe names no data
    mine, theirs = found["run"]["tasks"], found["hf"]["tasks"]
    assert mine.keys() == theirs.keys() == {"tiny_choice", "tiny_rolling", "tiny_written"}
    for task, figures in theirs.items():
        assert mine[task] == pytest.approx(figures, rel=1e-5), task
    assert mine["tiny_choice"].keys() == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}
    assert 0 < mine["tiny_choice"]["acc"] < 1 < mine["tiny_rolling"]["byte_perplexity"]


def test_the_table_is_lm_evals(place, upmix, offline):
    code, out, _ = upmix("eval", place / "run", "--tasks", "tiny_choice", "--task-path", place / "tasks", "--limit", 2)
    assert code == 0 and "|acc_norm" in out.replace(" ", "") and "tiny_choice" in out


def _alone(begin):
    @functools.wraps(begin)
    def without_defaults(self, *args, **fields):
        begin(self, *args, **fields | {"include_defaults": False})

    return without_defaults


MISTAKES = {
    "no task 'tiny_choise'; nearest: tiny_choice; allowed: ": ["--tasks", "tiny_choise"],
    "task tiny_sampled: it samples; allowed: greedy ones": ["--tasks", "tiny_sampled"],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_one_line(place, upmix, offline, message, monkeypatch):
    from lm_eval.tasks import TaskManager

    # The package's own list takes half a minute to read.
    monkeypatch.setattr(TaskManager, "__init__", _alone(TaskManager.__init__))
    code, out, error = upmix("eval", place / "run", *MISTAKES[message], "--task-path", place / "tasks")
    assert (code, out, error.count("\n")) == (2, "", 1) and message in error


def test_data_that_is_not_there_is_one_line(place, upmix, offline, tmp_path):
    shutil.copytree(place / "tasks", tmp_path / "tasks")
    file = tmp_path / "tasks" / "choice.yaml"
    file.write_text(file.read_text().replace("data.jsonl", "missing.jsonl"))
    code, out, error = upmix("eval", place / "run", "--tasks", "tiny_choice", "--task-path", tmp_path / "tasks")
    assert (code, out, error.count("\n")) == (2, "", 1) and "tasks: tiny_choice cannot be loaded" in error
