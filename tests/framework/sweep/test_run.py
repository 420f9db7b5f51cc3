"""Training a sweep here: skipping, failing, running elsewhere, stopping. What trains is a script that pretends to."""

import fcntl
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from framework.errors import UserError
from framework.recipe import dump
from framework.sweep import Arguments, load_sweep
from framework.sweep.costs import costs
from framework.sweep.run import run_sweep
from framework.trials import runs
from framework.trials.runs import State

RECIPE = """
model: {pattern: "*-", d_model: 16, vocab_size: 300, attention: {num_heads: 2}, ffn: {multiplier: 2}}
data: {corpus: nowhere, seq_len: 16, batch_size: 2}
training: {steps: 4}
"""
TRAINER = """
import fcntl, shutil, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
name, runs_dir = words[words.index("--name") + 1], Path(words[words.index("--runs-dir") + 1])
assert words[0] == "train" and "--resume" in words
with open("starts", "a") as starts:
    starts.write(name + "\\n")
folder = runs_dir / name
folder.mkdir(exist_ok=True)
lock = open(folder / ".lock", "a")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
shutil.copy(f"resolved/{name}.yaml", folder / "recipe.yaml")
if "optim.eps=0.3" in words:
    sys.exit("upmix: out of luck")
if "optim.eps=0.4" in words:
    sys.exit("upmix: the loss is not finite")
def stop(number, frame):
    (folder / "stopped").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
while "optim.eps=0.5" in words and not Path("go").exists():
    time.sleep(0.02)
steps = ([int(word[15:]) for word in words if word.startswith("training.steps=")] or [4])[-1]
(folder / "DONE").write_text(f"{steps}\\n")
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Gives a sweep over optim.eps: 0.3 fails, 0.4 diverges, 0.5 waits for the file `go`."""
    monkeypatch.chdir(tmp_path)
    Path("trainer.py").write_text(TRAINER)
    Path("tiny.yaml").write_text(RECIPE)
    Path("resolved").mkdir()
    monkeypatch.setattr(runs, "UPMIX", (sys.executable, "-S", "trainer.py"))
    monkeypatch.setattr(runs, "POLL_SECONDS", 0.02)

    def make(values, *overrides):
        made = load_sweep("tiny.yaml", Arguments(overrides, over=(f"optim.eps={values}",), name="grid"))
        for cell in made.cells:
            Path(f"resolved/{cell.name}.yaml").write_text(dump(cell.loaded.recipe))
        return made

    return make


def run(sweep, at_once=2):
    return [(event.trial.name, event.state) for events in run_sweep(sweep, Path("runs"), at_once) for event in events]


def starts():
    return Path("starts").read_text().split() if Path("starts").exists() else []


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_failing_cell_stops_no_other_and_what_is_over_is_not_run_again(sweep):
    grid = sweep("0.1,0.3,0.4,0.2")
    assert run(grid)[:2] == [("eps_0.1", State.STARTED), ("eps_0.3", State.STARTED)]
    assert [cost.finished for cost in costs(grid, Path("runs"))] == [True, False, False, True]
    assert sorted(starts()) == ["eps_0.1", "eps_0.2", "eps_0.3", "eps_0.4"]
    again = run_sweep(grid, Path("runs"), at_once=2)
    assert [(event.trial.name, event.state) for event in next(again)] == [
        ("eps_0.1", State.FINISHED), ("eps_0.4", State.DIVERGED), ("eps_0.2", State.FINISHED)]
    started, failed = (event for events in again for event in events)
    assert (started.state, failed.state) == (State.STARTED, State.FAILED) and "out of luck" in failed.said
    assert starts()[4:] == ["eps_0.3"]
    assert sorted(path.name for path in Path("runs/grid").glob("*.out")) == ["eps_0.3.out", "eps_0.4.out"]


def test_a_longer_run_goes_on_and_another_recipe_is_refused(sweep):
    run(sweep("0.1,0.2"))
    longer = sweep("0.1,0.2", "training.steps=6")
    assert [cost.finished for cost in costs(longer, Path("runs"))] == [False, False]
    assert ("eps_0.1", State.FINISHED) in run(longer) and len(starts()) == 4
    tagged = sweep("0.1,0.2", "training.steps=6", "tags=[lr]")
    assert run(tagged) == [("eps_0.1", State.FINISHED), ("eps_0.2", State.FINISHED)]
    first, *_ = run_sweep(sweep("0.1,0.2", "optim.lr=0.5"), Path("runs"), at_once=1)
    assert [event.state for event in first] == [State.FAILED] * 2 and "may not change optim.lr" in first[0].said
    assert len(starts()) == 4


def test_a_second_run_of_one_sweep_leaves_to_the_first_what_that_runs(sweep):
    grid = sweep("0.5,0.1")
    with closing(run_sweep(grid, Path("runs"), at_once=1)) as first:
        next(first), next(first)
        assert run(grid, at_once=1) == [("eps_0.5", State.ELSEWHERE), ("eps_0.1", State.STARTED),
                                        ("eps_0.1", State.FINISHED)]
        Path("go").touch()
        assert [(event.trial.name, event.state) for events in first for event in events] == [
            ("eps_0.5", State.FINISHED), ("eps_0.1", State.FINISHED)]
    assert sorted(starts()) == ["eps_0.1", "eps_0.5"] and not list(Path("runs/grid").glob("*.out"))


def test_a_folder_that_another_process_writes_is_left_alone(sweep):
    grid = sweep("0.1")
    Path("runs/grid/eps_0.1").mkdir(parents=True)
    with Path("runs/grid/eps_0.1/.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run(grid) == [("eps_0.1", State.ELSEWHERE)]
    assert not starts() and not list(Path("runs/grid").glob("*.out"))


def test_leaving_stops_what_runs_gently(sweep):
    with closing(run_sweep(sweep("0.5,0.1"), Path("runs"), at_once=1)) as looks:
        next(looks), next(looks)
        wait_for(Path("runs/grid/eps_0.5/recipe.yaml").exists)
        time.sleep(0.3)  # until the script has its handler
    assert Path("runs/grid/eps_0.5/stopped").exists() and starts() == ["eps_0.5"]


def test_what_no_command_could_train_is_refused_before_the_first_run(sweep):
    with pytest.raises(UserError, match="cell eps_0.1: .*neither steps nor tokens"):
        run(sweep("0.1,0.2", "training.steps=null"))
    assert not Path("runs").exists()
    Path("runs/grid").mkdir(parents=True)
    Path("runs/grid/recipe.yaml").touch()
    with pytest.raises(UserError, match="runs/grid: a run"):
        run(sweep("0.1,0.2"))


def test_costs_are_arithmetic(sweep):
    cost, _ = costs(sweep("0.1,0.2", "parallel.dp_shard=2"), Path("runs"), teraflops=2.0)
    assert (cost.tokens, cost.gpus, cost.finished) == (4 * 2 * 16, 2, False)
    assert cost.flops == pytest.approx(128 * 6 * (300 * 16 + 4 * 16 * 16 + 3 * 16 * 32) + 128 * 3 * 4 * 16 * 8.5)
    assert cost.hours == pytest.approx(cost.flops / (2 * 2e12) / 3600)
    unknown, _ = costs(sweep("0.1,0.2", "training.steps=null"), Path("runs"))
    assert (unknown.tokens, unknown.flops, unknown.hours) == (None, None, None)


def test_the_decays_of_slides_cost_too_and_must_be_done(sweep):
    slides = "optim.schedule=trapezoid", "optim.decay_fraction=0.5", "training.steps=8", "training.slides=[4]"
    grid = sweep("0.1", *slides)
    alone, = costs(sweep("0.1", *slides[:-1]), Path("runs"))
    both, = costs(grid, Path("runs"))
    assert both.tokens == alone.tokens and both.flops == pytest.approx(alone.flops * 10 / 8)
    for name, done in (("eps_0.1", 8), ("eps_0.1-slide-4", 3)):
        (Path("runs/grid") / name).mkdir(parents=True)
        (Path("runs/grid") / name / "DONE").write_text(f"{done}\n")
    assert not costs(grid, Path("runs"))[0].finished
    Path("runs/grid/eps_0.1-slide-4/DONE").write_text("4\n")
    assert costs(grid, Path("runs"))[0].finished
