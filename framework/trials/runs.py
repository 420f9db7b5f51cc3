"""Running many recipes on this machine, a few at a time, each as `upmix train` into a run folder of its own.

A run that is finished is not run again, one that was interrupted goes on from its newest checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from framework.command import UPMIX
from framework.errors import UserError
from framework.trials.gpus import gpus_of, visible_gpus
from parallel.launcher import die_with

DIVERGED = "diverged"
"""Name of the file that marks a run which cannot be finished: too many steps had no finite gradient."""

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Trial:
    """One run: its name, the recipe's name or file, and the fields that it changes (key=value)."""

    name: str
    recipe: str
    overrides: tuple[str, ...]

    def folder(self, runs_dir: Path) -> Path:
        return runs_dir / self.name


class State(StrEnum):
    """What has become of a trial."""

    STARTED = "started"
    FINISHED = "finished"
    DIVERGED = DIVERGED
    FAILED = "failed"
    ELSEWHERE = "running elsewhere"


@dataclass(frozen=True)
class Event:
    """A trial's state changed. said: why it failed, in one line."""

    trial: Trial
    state: State
    said: str = ""


def run_trials(trials: Sequence[Trial], runs_dir: Path, at_once: int) -> Iterator[Trial]:
    """Yield each trial when it is over, finished ones first. Afterwards `loss_of` tells what it came to.

    at_once: how many run at a time; they share the machine's cores and GPUs. Stops all of them, gently, when the caller
    leaves.
    Raises UserError with the last line that a run said before it failed, and for one that another process runs.
    """
    with contextlib.closing(follow_trials(trials, runs_dir, at_once)) as looks:
        for event in (event for events in looks for event in events):
            if event.state in (State.FAILED, State.ELSEWHERE):
                raise UserError(f"{event.trial.name}: {event.said}")
            if event.state is not State.STARTED:
                yield event.trial


def follow_trials(
    trials: Sequence[Trial], runs_dir: Path, at_once: int, is_done: Callable[[Trial], bool] | None = None,
) -> Iterator[list[Event]]:
    """Run trials as `run_trials`, and yield what happened since the last look: often nothing, POLL_SECONDS apart.

    A trial that fails, or that another process runs, does not stop the others. is_done: whether a trial was trained to
    its end before; None: where its folder has DONE.
    """
    assert len({trial.name for trial in trials}) == len(trials), "two trials share a folder"
    is_done = is_done or (lambda trial: (trial.folder(runs_dir) / "DONE").exists())
    over = {trial: _before(trial, runs_dir, is_done) for trial in trials}
    waiting = [trial for trial, event in over.items() if event is None]
    yield [event for event in over.values() if event is not None]
    runs_dir.mkdir(parents=True, exist_ok=True)
    running: dict[Trial, subprocess.Popen] = {}
    slots: dict[Trial, int] = {}
    gpus = visible_gpus() if waiting else []
    try:
        while waiting or running:
            events = []
            while waiting and len(running) < at_once:
                trial = waiting.pop(0)
                slot = min(set(range(at_once)) - {slots[other] for other in running})
                its_gpus = gpus_of(slot, _num_ranks(trial), gpus) if gpus else {}
                started = _start(trial, runs_dir, at_once, is_done, its_gpus)
                if isinstance(started, Event):
                    events.append(started)
                else:
                    running[trial], slots[trial] = started, slot
                    events.append(Event(trial, State.STARTED))
            for trial in [trial for trial, process in running.items() if process.poll() is not None]:
                events.append(_ended(trial, running.pop(trial).returncode, runs_dir))
            yield events
            time.sleep(POLL_SECONDS)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def loss_of(trial: Trial, runs_dir: Path) -> float:
    """The training loss that a finished trial ended with, see `Run.final_loss`; infinity where it diverged."""
    from framework.report import load_runs

    folder = trial.folder(runs_dir)
    if (folder / DIVERGED).exists():
        return math.inf
    run, = load_runs([folder])
    loss = run.final_loss()
    return loss if math.isfinite(loss) else math.inf


def _before(trial: Trial, runs_dir: Path, is_done: Callable[[Trial], bool]) -> Event | None:
    """How a trial ended before; None where it has not."""
    if (trial.folder(runs_dir) / DIVERGED).exists():
        return Event(trial, State.DIVERGED)
    return Event(trial, State.FINISHED) if is_done(trial) else None


def _start(
    trial: Trial, runs_dir: Path, at_once: int, is_done: Callable[[Trial], bool], its_gpus: Mapping[str, str],
) -> subprocess.Popen | Event:
    """The process that trains it; where another one does already, or has done so meanwhile, what became of it."""
    elsewhere = Event(trial, State.ELSEWHERE, "another process is writing this run")
    with _output(trial, runs_dir).open("ab") as output:
        # The process that trains inherits the lock with its output, so it lasts as long as that lives.
        if not _lock(output):
            return elsewhere
        over = elsewhere if _is_locked(trial.folder(runs_dir)) else _before(trial, runs_dir, is_done)
        if over is not None:
            if not output.tell():
                _output(trial, runs_dir).unlink(missing_ok=True)
            return over
        output.truncate(0)
        threads = max(1, len(os.sched_getaffinity(0)) // at_once)
        place = "--name", trial.name, "--runs-dir", str(runs_dir)
        command = [*UPMIX, "train", trial.recipe, *trial.overrides, *place, "--resume"]
        parent = os.getpid()
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), **its_gpus}, preexec_fn=lambda: die_with(parent),
        )


def _num_ranks(trial: Trial) -> int:
    """0 for a recipe with a mistake, which its run says."""
    from framework.recipe import load_recipe
    from framework.training.preconditions import mesh_sizes

    try:
        return mesh_sizes(load_recipe(trial.recipe, trial.overrides).recipe.parallel).world
    except UserError:
        return 0


def _lock(file: IO) -> bool:
    """Take the lock of an open file, if nobody holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(folder: Path) -> bool:
    """Whether a process, on this machine or another, is writing the run."""
    with contextlib.suppress(FileNotFoundError), (folder / ".lock").open("r+") as file:
        return not _lock(file)
    return False


def _output(trial: Trial, runs_dir: Path) -> Path:
    return runs_dir / f"{trial.name}.out"


def _ended(trial: Trial, code: int, runs_dir: Path) -> Event:
    """A run whose numbers blew up is a result; any other failure is one."""
    output = _output(trial, runs_dir)
    lines = output.read_text(errors="replace").strip().splitlines()
    if code == 0:
        output.unlink()
    elif code == 1 and any("is not finite" in line for line in lines) and trial.folder(runs_dir).is_dir():
        (trial.folder(runs_dir) / DIVERGED).touch()
        return Event(trial, State.DIVERGED)
    elif _is_locked(trial.folder(runs_dir)):
        return Event(trial, State.ELSEWHERE, "another process is writing this run")
    else:
        return Event(trial, State.FAILED, f"training ended with {code}: {lines[-1] if lines else 'without a word'}; "
                                          f"all that it said: {output}")
    return Event(trial, State.FINISHED)
