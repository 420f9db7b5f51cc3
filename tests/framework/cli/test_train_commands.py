"""`upmix train`, `eval`, `generate` and `checkpoint` as a person uses them."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml

from framework.cli import main
from framework.command import UPMIX
from framework.errors import UserError
from framework.training.checkpoint.manifest import Manifest, file_facts, read_manifest, write_manifest

RECIPE = {
    "model": {"pattern": "*E", "d_model": 16, "vocab_size": 384, "attention": {"num_heads": 2},
              "ffn": {"multiplier": 2}, "moe": {"expansion_rate": 2, "granularity": 2}},
    "data": {"corpus": "corpus", "seq_len": 16, "batch_size": 4, "validation_fraction": 0.2},
    "training": {"steps": 100000, "eval_every": 4}, "checkpoint": {"every": 4, "keep_last": 3},
    "parallel": {"dp_shard": 2, "ep": 2},
}


def upmix(*arguments: str) -> list[str]:
    return [*UPMIX, *arguments]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands are given: a corpus, a recipe, and a run `tiny` that was killed, resumed and finished."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "corpus").mkdir()
    text = Path(yaml.__file__).read_text()
    for number in range(10):
        (folder / "corpus" / f"{number}.txt").write_text(text[1200 * number : 1200 * (number + 1)])
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    kill_and_resume(folder)
    return folder


def kill_and_resume(folder: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = psutil.Popen(upmix("train", "tiny.yaml"), cwd=folder, env=environment, stderr=subprocess.PIPE)
    wait_for(lambda: (folder / "runs" / "tiny" / "checkpoints" / "step_4" / "manifest.json").exists() or started.poll())
    assert started.poll() is None, started.stderr.read().decode()
    ranks = started.children(recursive=True)
    assert len(ranks) >= 2
    started.kill()
    wait_for(lambda: all(map(is_dead, ranks)), seconds=1)
    reached = 4 + int(sorted((folder / "runs" / "tiny" / "checkpoints").glob("step_*"), key=number)[-1].name[5:])
    done = subprocess.run(upmix("train", "tiny.yaml", "--resume", f"training.steps={reached}"), cwd=folder,
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def number(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def is_dead(process: psutil.Process) -> bool:
    """Nobody may be there to collect the exit code of an orphan."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def give(folder, monkeypatch, capsys):
    """Give a command in this process: (exit code, standard output, standard error)."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", ["upmix", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return command


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the run, to be harmed."""
    return Path(shutil.copytree(folder / "runs" / "tiny", tmp_path / "copy"))


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_killed_with_its_ranks_and_resumed_no_step_is_missing_or_stands_twice(folder):
    steps = [row["step"] for row in rows(folder / "runs" / "tiny") if row["kind"] == "train"]
    assert steps == list(range(1, steps[-1] + 1))
    assert (folder / "runs" / "tiny" / "DONE").read_text() == f"{steps[-1]}\n"


def test_eval_agrees_with_the_run(folder, give):
    last = [row for row in rows(folder / "runs" / "tiny") if row["kind"] == "eval"][-1]
    code, out, _ = give("eval", "runs/tiny", "--json")
    measured = json.loads(out)
    assert code == 0 and measured["step"] == last["step"]
    for name in ("val_loss", "val_bits_per_byte"):
        assert measured[name] == pytest.approx(last[name], rel=1e-5)
    assert f"{last['val_bits_per_byte']:.3f}" in give("eval", "runs/tiny")[1]


def test_eval_takes_a_ranks_share_at_a_time(give, monkeypatch):
    from framework.training import run_evaluation

    sizes, evaluate = [], run_evaluation.evaluate
    monkeypatch.setattr(run_evaluation, "evaluate", lambda model, data, size, *rest, **further: (
        sizes.append(size), evaluate(model, data, size, *rest, **further))[1])
    assert give("eval", "runs/tiny")[0] == 0 and sizes == [2]


def test_a_loss_on_no_data_is_refused():
    """As of a run that was converted without any."""
    from framework.training.run_evaluation import has_validation, measure_loss

    data = SimpleNamespace(corpus=None, blend={}, validation_fraction=0.05)
    found = SimpleNamespace(loaded=SimpleNamespace(recipe=SimpleNamespace(data=data)))
    assert not has_validation(found)
    with pytest.raises(UserError, match="runs/theirs: its recipe names no data to measure a loss on"):
        measure_loss(found, Path("runs/theirs"), torch.device("cpu"))


def test_eval_on_other_data_than_the_runs_is_refused(give, copy):
    facts = json.loads((copy / "data.json").read_text())
    (copy / "data.json").write_text(json.dumps(facts | {"tokenizer_sha256": "another"}))
    code, out, error = give("eval", copy)
    assert code == 2 and out == "" and "started on other data (tokenizer_sha256 was another" in error


def test_generate_continues_the_prompt_and_depends_on_the_seed_alone(give):
    texts = [give("generate", "runs/tiny", "import yaml\n", "--max-new-tokens", 20, "--seed", seed)[1]
             for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2] and all(text.startswith("import yaml\n") for text in texts)


def test_checkpoints_are_listed_and_verified(give, copy):
    kept = sorted(map(number, (copy / "checkpoints").glob("step_*")))
    code, out, _ = give("checkpoint", "ls", copy)
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == [f"step_{step}" for step in kept]
    assert give("checkpoint", "verify", copy)[0] == 0
    newest = copy / "checkpoints" / f"step_{kept[-1]}"
    assert give("checkpoint", "verify", newest)[1] == f"step_{kept[-1]}  good\n"
    shown = json.loads(give("checkpoint", "show", newest, "--json")[1])
    assert shown["step"] == kept[-1] and shown["tensors"][0]["name"].startswith("model.")
    assert give("checkpoint", "consolidate", newest)[0] == 0
    assert (copy / "consolidated" / newest.name / "model.safetensors.index.json").is_file()
    assert give("checkpoint", "consolidate", newest)[0] == give("checkpoint", "show", copy)[0] == 2
    path = copy / "checkpoints" / f"step_{kept[-1]}" / "state" / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    code, out, _ = give("checkpoint", "ls", copy)
    assert code == 1 and "__0_0.distcp has" in out.splitlines()[-1]
    code, out, _ = give("checkpoint", "verify", copy)
    assert code == 1 and out.count("good") == len(kept) - 1 and "__0_0.distcp" in out.splitlines()[-1]
    code, out, _ = give("eval", copy, "--json")
    assert code == 0 and json.loads(out)["step"] == kept[-2]


class Command:
    """Unpickled freely, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_hostile_checkpoint_runs_nothing(give, copy, tmp_path):
    marker = tmp_path / "ran"
    for checkpoint in (copy / "checkpoints").glob("step_*"):
        metadata, manifest = checkpoint / "state" / ".metadata", read_manifest(checkpoint)
        metadata.write_bytes(pickle.dumps(Command(marker)))
        manifest.files["state/.metadata"] = file_facts(metadata)
        write_manifest(checkpoint, Manifest(manifest.step, manifest.progress, manifest.files))
    code, out, _ = give("checkpoint", "verify", copy)
    assert code == 1 and "posix.system" in out
    for command in (("eval", copy), ("generate", copy, "a"), ("checkpoint", "ls", copy)):
        assert give(*command)[0] == (0 if command[0] == "checkpoint" else 2)
    assert not marker.exists()


@pytest.mark.parametrize("arguments", [
    ("train", "tiny.yaml"), ("train", "tiny.yaml", "--resume", "optim.lr=3"), ("train", "nowhere"),
    ("train", "tiny.yaml", "--runs-dir", "tiny.yaml"), ("train", "tiny.yaml", "--name", "b", "data.corpus=nowhere"),
    ("train", "tiny.yaml", "--name", "b", "parallel.tp=3"), ("eval", "nowhere"), ("eval", "runs"),
    ("eval", "runs/tiny", "--step", 3), ("eval",), ("generate", "nowhere", "a"), ("generate", "runs/tiny"),
    ("generate", "runs/tiny", "a", "--top-k", 0), ("generate", "runs/tiny", "a", "--top-p", 0),
    ("generate", "runs/tiny", "\udcff"), ("generate", "runs/tiny", "a", "--seed", 2**63),
    ("checkpoint", "ls", "nowhere"), ("checkpoint", "verify", "corpus"),
])
def test_mistakes_are_one_line(give, arguments):
    code, out, error = give(*arguments)
    assert code == 2 and out == "" and error.count("\n") == 1, error


def test_a_finished_run_is_left_alone(give, folder):
    before = (folder / "runs" / "tiny" / "metrics.jsonl").read_bytes()
    steps = (folder / "runs" / "tiny" / "DONE").read_text().strip()
    assert give("train", "tiny.yaml", "--resume", f"training.steps={steps}")[0] == 0
    assert (folder / "runs" / "tiny" / "metrics.jsonl").read_bytes() == before


def test_a_stop_signal_reaches_the_ranks(folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(upmix("train", "tiny.yaml", "--name", "stopped", "parallel.dp_shard=1", "parallel.ep=1"),
                               cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    run = folder / "runs" / "stopped"
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text() or started.poll())
    started.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM after a checkpoint" in started.communicate(timeout=60)[1]
    assert started.returncode == 143
    assert number(sorted((run / "checkpoints").glob("step_*"), key=number)[-1]) == rows(run)[-1]["step"]
