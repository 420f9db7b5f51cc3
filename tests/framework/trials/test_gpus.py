"""Runs at a time are spread over a machine's GPUs."""

import sys

import pytest

from framework.trials import gpus, runs
from framework.trials.gpus import VISIBLE, gpus_of, visible_gpus
from framework.trials.runs import Trial, run_trials

SAY = "import os, sys, pathlib; folder = pathlib.Path(sys.argv[sys.argv.index('--runs-dir') + 1]); " \
      "name = sys.argv[sys.argv.index('--name') + 1]; (folder / name).mkdir(); " \
      f"(folder / name / 'gpus').write_text(os.environ.get('{VISIBLE}', 'all'))"


@pytest.mark.parametrize(("slot", "num_ranks", "expected"), [
    (0, 1, "4"), (1, 1, "5"), (2, 1, "7"), (3, 1, "4"), (0, 2, "4,5"), (1, 2, "7,4"), (5, 3, "4,5,7"),
    (0, 4, None), (0, 0, None),
])
def test_each_slot_has_the_next_gpus(slot, num_ranks, expected):
    assert gpus_of(slot, num_ranks, ["4", "5", "7"]) == ({} if expected is None else {VISIBLE: expected})


def test_gpus_are_those_that_this_process_may_see(monkeypatch):
    monkeypatch.setattr(gpus.Path, "exists", lambda path: str(path) == "/dev/nvidiactl")
    monkeypatch.setenv(VISIBLE, "2,GPU-8932f937")
    assert visible_gpus() == ["2", "GPU-8932f937"]
    monkeypatch.setenv(VISIBLE, "")
    assert visible_gpus() == []
    monkeypatch.setattr(gpus.Path, "exists", lambda path: False)
    assert visible_gpus() == []


def test_runs_at_a_time_have_gpus_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "UPMIX", (sys.executable, "-c", SAY))
    monkeypatch.setattr(runs, "visible_gpus", lambda: ["0", "1", "2", "3"])
    one, two = ("parallel.dp_shard=1", "parallel.ep=1"), ("parallel.dp_shard=2", "parallel.ep=1")
    trials = [Trial("a", "quickstart", one), Trial("b", "quickstart", one), Trial("c", "no-such-recipe", ())]
    assert {trial.name for trial in run_trials(trials, tmp_path, at_once=3)} == {"a", "b", "c"}
    assert [(tmp_path / name / "gpus").read_text() for name in "abc"] == ["0", "1", "all"]
    trials = [Trial("d", "quickstart", two), Trial("e", "quickstart", two)]
    assert len(list(run_trials(trials, tmp_path, at_once=2))) == 2
    assert [(tmp_path / name / "gpus").read_text() for name in "de"] == ["0,1", "2,3"]
