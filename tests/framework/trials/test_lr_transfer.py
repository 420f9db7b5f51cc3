"""Learning-rate transfer: the grid, its minima, and real runs that go on where they were."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.trials.lr_transfer import Point, grid, optima, steps_moved
from framework.trials.runs import DIVERGED, Trial, loss_of, run_trials

RECIPE = """
model: {pattern: "*-", d_model: 16, vocab_size: 300, attention: {num_heads: 2}, ffn: {multiplier: 2}}
data: {corpus: CORPUS, seq_len: 16, batch_size: 2}
optim: {schedule: constant}
training: {steps: 4}
parametrization: {kind: mup, base_d_model: 16}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("UPMIX_DATA", str(tmp_path / "data"))
    corpus = tmp_path / "words.txt"
    corpus.write_text("\n\n".join("to be or not to be " * count for count in range(1, 60)))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("CORPUS", str(corpus)))
    return str(path)


def points(width, losses, seed=0):
    return [Point(width, 1e-3 * 2**index, seed, loss) for index, loss in enumerate(losses)]


@settings(max_examples=20, deadline=None)
@given(st.floats(1.0, 4.0), st.floats(0.05, 2.0))
def test_a_parabola_has_its_minimum_where_it_is(place, curvature):
    """Losses that are a parabola over log2(lr) give its vertex, and the nearest point of the grid."""
    best, = optima(points(64, [3.0 + curvature * (index - place) ** 2 for index in range(6)]))
    assert abs(best.index - place) <= 0.5 + 1e-9 and not best.at_edge
    assert best.refined == pytest.approx(1e-3 * 2**place, rel=1e-6)


def test_seeds_are_averaged_and_diverged_runs_lose():
    rows = points(32, [3.0, 2.0, 1.0, math.inf]) + points(32, [3.0, 2.0, 3.5, 9.0], seed=1)
    best, = optima(rows)
    assert (best.index, best.lr, best.loss, best.refined) == (1, 2e-3, 2.0, pytest.approx(best.refined))
    assert optima(points(32, [math.inf, math.inf])) == []
    beside, = optima(points(32, [2.0, 1.0, math.inf]))
    assert beside.refined == beside.lr == 2e-3
    assert optima(points(32, [1.0, 2.0]))[0].at_edge


def test_steps_between_the_outermost_minima():
    assert steps_moved(optima(points(32, [3, 1, 2, 3]) + points(64, [3, 2, 1, 3]) + points(128, [3, 1, 2, 3]))) == 1
    assert steps_moved(optima(points(32, [3, 3, 2, 1]) + points(64, [1, 2, 2, 3]))) == 3


def test_every_cell_of_the_grid_has_a_run_of_its_own():
    trials = grid("quickstart", ["optim.eps=1e-9"], [32, 64], [1e-3, 2e-3], range(2))
    assert len(trials) == len({trial.name for trial in trials.values()}) == 8
    assert trials[64, 2e-3, 1].overrides == ("optim.eps=1e-9", "model.d_model=64", "optim.lr=0.002", "training.seed=1",
                                              "training.slides=[]")


def test_the_command_runs_what_is_missing(recipe, tmp_path, upmix):
    """A grid whose finished runs are there: only the last is trained; one that diverged stays so."""
    folder = tmp_path / "runs" / "grid"
    options = [recipe, "--widths", "16,32", "--lrs", "1e-3,2e-3", "--seeds", 1, "--name", "grid", "--runs-dir",
               tmp_path / "runs", "--json"]
    for name, loss in (("width_16_lr_0.001_seed_0", 3.0), ("width_16_lr_0.002_seed_0", 2.0),
                       ("width_32_lr_0.001_seed_0", 2.5)):
        (folder / name).mkdir(parents=True)
        (folder / name / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 4, "loss": loss}) + "\n")
        (folder / name / "DONE").write_text("4\n")
    (folder / "width_32_lr_0.001_seed_0" / "DONE").rename(folder / "width_32_lr_0.001_seed_0" / DIVERGED)
    code, out, err = upmix("lrtransfer", *options)
    found = json.loads(out)
    assert code == 0, err
    losses = {(row["width"], row["lr"]): row["loss"] for row in found["rows"]}
    assert losses[16, 1e-3] == 3.0 and losses[32, 1e-3] is None and 5 < losses[32, 2e-3] < 6
    assert (folder / "width_32_lr_0.002_seed_0" / "DONE").exists() and found["steps_moved"] == 0
    assert (folder / "lrtransfer.png").stat().st_size > 10_000


def test_a_failed_run_says_why_and_a_diverged_one_is_a_result(recipe, tmp_path):
    bad = Trial("bad", recipe, ("data.micro_batch_size=3",))
    with pytest.raises(ValueError, match="bad: training ended with 2: .*micro_batch_size"):
        list(run_trials([bad], tmp_path / "runs", at_once=2))
    wild = Trial("wild", recipe, ("optim.lr=1.0e+30", "optim.clip_norm=null", "training.max_bad_steps=1",
                                  "training.steps=9"))
    assert list(run_trials([wild], tmp_path / "runs", at_once=2)) == [wild]
    assert loss_of(wild, tmp_path / "runs") == math.inf


@pytest.mark.parametrize(("arguments", "said"), [
    (["--lrs", "1e-3"], "two or more"), (["--lrs", "a,b"], "--lrs 'a,b'"), (["--widths", "16,33"], "d_model 33"),
])
def test_refusals(recipe, upmix, arguments, said):
    code, out, err = upmix("lrtransfer", recipe, *arguments)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1
