"""The run folder that upcycling makes: training goes on from it, and half of one is never there."""

import json
import os
import shutil
import signal

import pytest

from framework.errors import UserError
from framework.surgery import Options, find_source
from framework.training import load_run
from parallel.pool import RankError
from tests.helpers.runs import rows, run
from tests.helpers.upcycling import SHARDS, target, upcycle_on_rank

ONE = "dp_shard=1"


def test_the_run_goes_on_and_generates(ranks, recipe, dense, upcycle):
    path, report = upcycle("goes_on", "dp_shard=2,tp=2,ep=4", **SHARDS)
    assert report["step"] == 0 and report["source_step"] == 3
    assert json.loads((path / "upcycling.json").read_text()) == report
    found, before = load_run(path), load_run(dense)
    assert found.step == 0 and found.tokenizer.encode("def f") == before.tokenizer.encode("def f")
    assert run(ranks, recipe, path, *target(ONE), resume=True) == 0
    steps = rows(path)
    assert [row["step"] for row in steps] == [1, 2, 3]
    # The first batch is the dense run's first; three steps later the loss on it is lower than it was.
    assert steps[0]["loss"] < rows(dense)[0]["loss"] and (path / "DONE").exists()


def test_a_resume_refuses_what_it_always_refused(ranks, recipe, upcycle):
    path, _ = upcycle("refused", ONE, **SHARDS)
    with pytest.raises(RankError, match="a resume may not change optim.lr"):
        run(ranks, recipe, path, *target(ONE, "optim.lr=0.5"), resume=True)


def test_the_dense_runs_step_can_be_kept(ranks, recipe, upcycle):
    path, report = upcycle("kept", ONE, "training.steps=5", **SHARDS, keep_step=True)
    assert report["step"] == 3 and run(ranks, recipe, path, *target(ONE, "training.steps=5"), resume=True) == 0
    assert [row["step"] for row in rows(path)] == [4, 5]
    with pytest.raises(RankError, match="the dense run is at step 3, the target ends at 3"):
        upcycle("too_far", ONE, **SHARDS, keep_step=True)


def die(patch: pytest.MonkeyPatch, number: int) -> None:
    """As the checkpoint is about to be written."""
    from framework.training.checkpoint import Checkpointer

    def killed(*args, **kwargs):
        if number:
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt

    patch.setattr(Checkpointer, "save", killed)


def test_what_is_killed_leaves_no_run(upcycle):
    with pytest.raises(RankError):
        upcycle("killed", ONE, before=(die, signal.SIGKILL), **SHARDS)
    with pytest.raises(RankError):
        upcycle("stopped", ONE, before=(die, 0), **SHARDS)
    new = upcycle("killed", ONE, **SHARDS)[0].parent  # what was left is cleared by the next attempt
    assert (new / "killed" / "checkpoints" / "step_0" / "manifest.json").exists()
    assert not (new / "stopped").exists() and not list(new.glob(".*"))
    with pytest.raises(RankError, match="the run folder exists"):
        upcycle("killed", ONE, **SHARDS)


def test_another_tokenizer_is_refused(ranks, recipe, dense, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(dense, source)
    facts = json.loads((source / "data.json").read_text())
    (source / "data.json").write_text(json.dumps(facts | {"tokenizer_sha256": "another"}))
    arguments = source, recipe, target(ONE), tmp_path / "new", SHARDS
    with pytest.raises(RankError, match=r"tokenizer: the target's is not that .*allowed: .*source/tokenizer.model"):
        ranks.run(1, upcycle_on_rank, *arguments)
    assert not (tmp_path / "new").exists()


def test_a_source_is_a_run_or_one_checkpoint_of_it(dense, tmp_path):
    assert find_source(dense).step is None and find_source(dense, 3).step == 3
    assert find_source(dense / "checkpoints" / "step_3").step == 3
    for path, step in ((tmp_path, None), (dense, 2), (dense / "checkpoints" / "step_3", 3),
                       (dense / "checkpoints" / "step_9", None)):
        with pytest.raises(UserError):
            find_source(path, step)


@pytest.mark.parametrize("options", [dict(method="x"), dict(router="x"), dict(scaling="x"), dict(optimizer="x"),
                                     dict(drop_ratio=1.5), dict(noise_share=-1), dict(noise_std=float("nan"))])
def test_options_that_are_not_allowed(options):
    with pytest.raises(UserError, match="allowed"):
        Options(**options).settled()
