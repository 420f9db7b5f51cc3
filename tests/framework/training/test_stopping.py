"""Stops at any moment: before ranks have joined, while a run is set up, in an evaluation; and what a resume makes good.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from framework.command import UPMIX
from framework.training.agreement import StopPoll
from framework.training.checkpoint import checkpoint_folder, read_manifest, steps_present
from framework.training.peers import Peers
from framework.training.signals import Stopped, StopRequest
from tests.framework.training.test_whole_runs import TWO, assert_same, die_at
from tests.helpers.runs import Whole, all_rows, cut, rows, run, write_recipe

ROOT = Path(__file__).resolve().parents[3]
NUM_STEPS = 4
STOP = 128 + signal.SIGUSR1


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Evaluates after steps 2 and 4, in more forwards than stop any of these tests."""
    return write_recipe(tmp_path_factory.mktemp("stops"), training={"steps": NUM_STEPS, "eval_every": 2})


@pytest.fixture(scope="module")
def whole(ranks, recipe):
    return Whole(ranks, recipe)


def assert_undisturbed(path: Path, reference: Path) -> None:
    assert_same(path, reference, NUM_STEPS)
    assert all_rows(path) == all_rows(reference)


TRAINER, EVALUATED = "framework.training.trainer", ("framework.data.batches", "ValidationData.batch")
IN_EVALUATION = {  # where, the signal's rank, and after which steps there are rows of evaluations then
    "in the step before it": (TRAINER, "Trainer._forward_backward", 2, 1, []),
    "in the middle of it": (*EVALUATED, 3, 1, []),
    "in the step before the last one": (TRAINER, "Trainer._forward_backward", 4, 0, [2]),
}


@pytest.mark.parametrize("moment", IN_EVALUATION)
def test_an_evaluation_that_a_stop_prevents_is_made_by_the_resume(ranks, recipe, whole, tmp_path, moment):
    path, (*where, evaluated) = tmp_path / "stopped", IN_EVALUATION[moment]
    assert run(ranks, recipe, path, *TWO, before=(die_at, *where, signal.SIGUSR1)) == STOP
    last = steps_present(path / "checkpoints")[-1]
    assert [row["step"] for row in rows(path)] == list(range(1, last + 1))
    assert ([row["step"] for row in rows(path, "eval")], last) == (evaluated, 2 + 2 * len(evaluated))
    assert not (path / "DONE").exists() and read_manifest(checkpoint_folder(path / "checkpoints", last)).progress[
        "owes_evaluation"]
    assert run(ranks, recipe, path, *TWO, resume=True) == 0
    assert_undisturbed(path, whole(*TWO))


def test_an_evaluation_that_was_made_good_is_not_made_again(ranks, recipe, whole, tmp_path):
    from parallel.pool import RankError

    path, stop = tmp_path / "stopped", (die_at, *EVALUATED, 3, 0, signal.SIGUSR1)
    assert run(ranks, recipe, path, *TWO, before=stop) == STOP
    assert run(ranks, recipe, path, *TWO, resume=True, before=stop) == STOP
    assert steps_present(path / "checkpoints") == [2] and rows(path, "eval") == []
    with pytest.raises(RankError, match="without a word|Connection|peer"):
        run(ranks, recipe, path, *TWO, resume=True, before=(die_at, TRAINER, "Trainer._update", 1))
    assert steps_present(path / "checkpoints") == [2] and [row["step"] for row in rows(path, "eval")] == [2]
    assert run(ranks, recipe, path, *TWO, resume=True) == 0
    assert_undisturbed(path, whole(*TWO))


def polled() -> tuple[list[int], int]:
    """What a rank hears when rank 1 is asked to stop before it asks for the third time."""
    peers, request = Peers(), StopRequest()
    poll, answers = StopPoll(peers, request), []
    while not any(answers) and len(answers) < 9:
        request.number = signal.SIGUSR1 if peers.rank == 1 and len(answers) == 2 else request.number
        answers.append(poll.ask())
    return answers, poll.answer()


def test_every_rank_hears_of_a_stop_with_the_question_after_it(ranks):
    assert ranks.run(3, polled) == [([0, 0, 0, signal.SIGUSR1], 0)] * 3


IN_SET_UP = {
    "as data is opened": ("framework.training.setup", "open_data", 1, 0),
    "as another rank's data is opened": ("framework.training.setup", "open_data", 1, 1),
    "as the model is built": ("framework.training.run", "build_model", 1, 1),
    "as the checkpoint is loaded": ("framework.training.checkpoint.checkpointer", "load", 1, 1),
}


def test_a_stop_before_the_first_step_leaves_the_run_as_it_is(ranks, recipe, whole, tmp_path):
    path = cut(whole(*TWO), tmp_path / "cut", 2)
    before = (path / "metrics.jsonl").read_bytes()
    for moment, where in IN_SET_UP.items():
        assert run(ranks, recipe, path, *TWO, resume=True, before=(die_at, *where, signal.SIGUSR1)) == STOP, moment
        assert (path / "metrics.jsonl").read_bytes() == before, moment
        assert steps_present(path / "checkpoints") == [2] and not (path / "DONE").exists()
    assert "stopped by SIGUSR1 before the first step" in (path / "log").read_text()
    assert run(ranks, recipe, path, *TWO, resume=True) == 0
    assert_undisturbed(path, whole(*TWO))


def stop_in_preparation(patch, seconds: float) -> None:
    """A signal to rank 0 while it prepares data, which would take so long."""
    def write_a_little(folder, *rest):
        (folder / "train.bin").touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(seconds)

    patch.setattr("framework.data.prepare._write_splits", write_a_little)


def test_a_long_preparation_is_broken_off_while_others_wait(ranks, recipe, whole, tmp_path):
    whole(*TWO)
    before = sorted((recipe.parent / "data").iterdir())
    other = "data.corpus=" + str(recipe.parent / "corpus" / "1*.txt"), "data.tokenizer=" + str(
        next((recipe.parent / "data" / "tokenizers").glob("*.model")))
    assert run(ranks, recipe, tmp_path / "a", *TWO, *other, before=(stop_in_preparation, 60), timeout=40) == 143
    assert not (tmp_path / "a").exists()
    assert [path.name for path in (recipe.parent / "data").iterdir() if "partial" in path.name] == []
    assert {path.suffix for path in set((recipe.parent / "data").iterdir()) - set(before)} <= {".lock"}


def test_a_rank_that_waits_for_others_to_join_ends_at_once(recipe):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [*UPMIX, "train", recipe, *TWO, "--name", "waits", "--runs-dir", recipe.parent]
    waiting = subprocess.Popen(command, env=os.environ | place | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
                               text=True)
    listens = f"0100007F:{port:04X}", f":{port:04X}"
    deadline = time.monotonic() + 60
    while not any(end in Path(f"/proc/{waiting.pid}/net/{table}").read_text() for table in ("tcp", "tcp6")
                  for end in listens):
        assert waiting.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    waiting.send_signal(signal.SIGUSR1)
    begun = time.monotonic()
    _, error = waiting.communicate(timeout=20)
    assert (waiting.returncode, error) == (STOP, "upmix: stopped by SIGUSR1 before the first step\n")
    assert time.monotonic() - begun < 3 and not (recipe.parent / "waits").exists()


BLOCKED = """
import ctypes, os, signal, sys, time
from framework.training.signals import StopRequest
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with StopRequest() as request:
    with request.ending_process(speaks=True):
        pass
    os.kill(os.getpid(), signal.SIGTERM) if sys.argv[1] == "noted" else None
    with request.ending_process(speaks=sys.argv[1] != "silent"):
        print("ready", flush=True)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)  # for ever, and no signal makes it return
"""


@pytest.mark.parametrize("how", ["aloud", "silent", "noted"])
def test_native_code_that_does_not_return_is_ended_with_its_process(how):
    process = subprocess.Popen([sys.executable, "-c", BLOCKED, how], env=os.environ | {"PYTHONPATH": str(ROOT)},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if how != "noted":
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 143
    assert error == ("" if how == "silent" else "upmix: stopped by SIGTERM before the first step\n")


def test_a_failure_that_a_signal_goes_with_is_that_stop(monkeypatch):
    monkeypatch.setattr("framework.training.signals.SECONDS_APART", 0.2)
    with StopRequest() as request:
        with pytest.raises(RuntimeError, match="by its own"), request.excusing():
            raise RuntimeError("by its own")
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Stopped) as stop, request.excusing():
            raise RuntimeError("another rank is gone")
        assert stop.value.signal == request.number == signal.SIGUSR1
        with pytest.raises(Stopped), request.raising():
            raise AssertionError("it was noted before")
