"""`upmix upcycle` as a person uses it, and every command that its page quotes."""

import gc
import json
import logging
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from framework.cli import main
from framework.command import UPMIX

PAGE = Path(__file__).parents[3] / "docs" / "upcycling.md"
DENSE = "(*-)x4"
RECIPE = {
    "model": {"pattern": "(*E)x4", "d_model": 16, "vocab_size": 384, "attention": {"num_heads": 2},
              "ffn": {"d_ff": 256}, "moe": {"expansion_rate": 8, "granularity": 4}},
    "data": {"corpus": "corpus", "seq_len": 16, "batch_size": 2, "validation_fraction": 0.2},
    "training": {"steps": 3}, "checkpoint": {"every": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, a tiny recipe, and `before`: a dense run as far as what is refused looks at it."""
    folder = tmp_path_factory.mktemp("upcycle")
    (folder / "corpus").mkdir()
    text = Path(yaml.__file__).read_text()
    for number in range(10):
        (folder / "corpus" / f"{number}.txt").write_text(text[1200 * number : 1200 * (number + 1)])
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "runs" / "before" / "checkpoints" / "step_3").mkdir(parents=True)
    dense = RECIPE | {"model": RECIPE["model"] | {"pattern": DENSE}}
    (folder / "runs" / "before" / "recipe.yaml").write_text(yaml.safe_dump(dense))
    return folder


@pytest.fixture
def give(folder, monkeypatch, capfd):
    """Give a command in this process, as the one rank of a world: (exit code, standard output, standard error)."""

    def command(*arguments: object, rank: bool = True) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        for name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        if rank:
            monkeypatch.setenv("RANK", "0")
            monkeypatch.setenv("WORLD_SIZE", "1")
        monkeypatch.setattr("sys.argv", ["upmix", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        gc.collect()  # a run's lock must not outlive its command
        _clear_sharding_prop_cache()  # which holds groups of a world that is gone
        return end.value.code or 0, *capfd.readouterr()

    loggers = [logging.getLogger(name) for name in ("framework", "parallel", "kernels")]
    before = [(logger, logger.level, logger.handlers, logger.propagate) for logger in loggers]
    yield command
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate


def quoted() -> list[list[str]]:
    """The page's commands, of the tiny recipe, a hundredth as long."""
    lines = [line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    upmix ")]
    short = [line.replace("quickstart", "tiny.yaml").replace("00", "") for line in lines[1:]]
    return [shlex.split(line)[1:] for line in short]


def test_the_pages_first_commands_work(give, folder):
    for words in quoted()[:2]:
        code, _, error = give(*words)
        assert code == 0, (words, error)
    report, = folder.glob("runs/*/upcycling.json")
    assert json.loads(report.read_text())["difference"]["tokens"] > 100


@pytest.mark.full
def test_the_pages_commands_work_in_their_order(give, folder):
    commands = quoted()
    assert len(commands) == 13 and {words[0] for words in commands} == {"train", "upcycle", "eval", "report"}
    for words in commands:
        code, out, error = give(*words)
        assert code == 0, (words, error)
        if "--json" in words:
            report = json.loads(out)
            assert len(report["mixtures"]) == 2 and not report["exact"] and report["run"] == "runs/mixed"
    exact = {path.parent.name for path in folder.glob("runs/*/upcycling.json") if json.loads(path.read_text())["exact"]}
    assert exact == {"shards", "copies", "shared", "goes_on"}
    for name in exact:
        difference = json.loads((folder / "runs" / name / "upcycling.json").read_text())["difference"]
        assert difference["relative"] < 1e-5 and difference["tokens"] > 100
    rows = (folder / "runs" / "goes_on" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["step"] == 4 and json.loads(rows[-1])["step"] == 6


UPCYCLE = ("upcycle", "runs/before", "--recipe", "tiny.yaml")


@pytest.mark.parametrize(("arguments", "said"), [
    (("upcycle", "nowhere", "--recipe", "tiny.yaml", "--name", "new"), "nowhere: no run here"),
    ((*UPCYCLE, "--name", "new", "--step", "7"), "no checkpoint of step 7; there are: 3"),
    (("upcycle", "runs/before"), "--recipe"),
    ((*UPCYCLE, "--name", "before", "--method", "granular"), "runs/before: the run folder exists"),
    ((*UPCYCLE, "--name", "a/b"), "a plain name"),
    ((*UPCYCLE, "--name", "new", "model.pattern=(*-)x4"), "has no experts"),
    ((*UPCYCLE, "--name", "new"), "or --method granular"),
    ((*UPCYCLE, "--name", "new", "--method", "all"), "allowed: copy, granular, drop"),
    ((*UPCYCLE, "--name", "new", "--method", "drop", "--drop-ratio", "2"), "allowed: a share"),
    ((*UPCYCLE, "--name", "new", "--drop-ratio", "0.5"), "allowed: with --method drop"),
    ((*UPCYCLE, "--name", "new", "--noise-share", "0.5"), "allowed: with --noise-std"),
    ((*UPCYCLE, "--name", "new", "--method", "granular", "model.moe.granularity=3"), "granularity 3 does not divide"),
    ((*UPCYCLE, "--name", "new", "--method", "granular", "data.corpus=no"), "data.corpus: corpus no"),
    ((*UPCYCLE, "--name", "new", "--runs-dir", "tiny.yaml", "--method", "granular"), "tiny.yaml"),
])
def test_mistakes_are_one_line_and_leave_nothing(give, folder, arguments, said):
    before = sorted(folder.rglob("*"))
    code, out, error = give(*arguments, rank=False)
    assert code == 2 and out == "" and error.count("\n") == 1 and said in error, error
    assert sorted(folder.rglob("*")) == before


@pytest.fixture
def trained(give, folder):
    if not (folder / "runs" / "trained").exists():
        assert give("train", "tiny.yaml", f"model.pattern={DENSE}", "--name", "trained")[0] == 0


def command_on_two_ranks() -> list[str]:
    command = ("upcycle", "runs/trained", "--recipe", "tiny.yaml", "parallel.tp=2", "parallel.ep=2", "--method",
               "granular", "--scaling", "exact", "--name", "ranks", "--json")
    return [*UPMIX, *command]


def alone() -> dict[str, str]:
    """The environment of a command that no launcher started."""
    return {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}


def test_as_many_ranks_are_started_as_the_target_has(give, monkeypatch):
    started = []
    monkeypatch.setattr("framework.cli.upcycle.start_ranks", lambda count: started.append(count) or 3)
    code, out, _ = give(*UPCYCLE, "--name", "started", "--method", "granular", "parallel.dp_shard=4", "parallel.ep=2",
                        "data.batch_size=4", rank=False)
    assert (code, out, started) == (3, "", [4])


@pytest.mark.full
def test_ranks_are_started_and_the_report_is_one_object(trained, folder):
    done = subprocess.run(command_on_two_ranks(), cwd=folder, env=alone(),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["exact"] and report["difference"]["relative"] < 1e-5
    assert (folder / "runs" / "ranks" / "checkpoints" / "step_0" / "manifest.json").exists()


@pytest.mark.full
def test_a_stop_leaves_no_run(trained, folder):
    """Stopped once its hidden folder is there."""
    started = subprocess.Popen([*command_on_two_ranks(), "--name", "stopped"], cwd=folder, stderr=subprocess.PIPE,
                               env=alone(), stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (folder / "runs" / ".stopped.partial").exists():
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=60)
    assert started.returncode == 143 and not list((folder / "runs").glob("*stopped*"))
