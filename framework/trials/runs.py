"""Running many recipes on this machine, a few at a time, each as `upmix train` into a run folder of its own.

A run that is finished is not run again, one that was interrupted goes on from its newest checkpoint.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.command import UPMIX
from framework.errors import UserError
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


def run_trials(trials: Sequence[Trial], runs_dir: Path, at_once: int) -> Iterator[Trial]:
    """Yield each trial when it is over, finished ones first. Afterwards `loss_of` tells what it came to.

    at_once: how many run at a time; they share the machine's cores. Stops all of them, gently, when the caller leaves.
    Raises UserError with the last line that a run said before it failed.
    """
    assert len({trial.name for trial in trials}) == len(trials), "two trials share a folder"
    waiting = [trial for trial in trials if not _is_over(trial.folder(runs_dir))]
    yield from (trial for trial in trials if trial not in waiting)
    runs_dir.mkdir(parents=True, exist_ok=True)
    running: dict[Trial, subprocess.Popen] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                trial = waiting.pop(0)
                running[trial] = _start(trial, runs_dir, at_once)
            for trial in [trial for trial, process in running.items() if process.poll() is not None]:
                _require_good(trial, running.pop(trial).returncode, runs_dir)
                yield trial
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


def _is_over(folder: Path) -> bool:
    return (folder / "DONE").exists() or (folder / DIVERGED).exists()


def _start(trial: Trial, runs_dir: Path, at_once: int) -> subprocess.Popen:
    threads = max(1, len(os.sched_getaffinity(0)) // at_once)
    place = "--name", trial.name, "--runs-dir", str(runs_dir)
    command = [*UPMIX, "train", trial.recipe, *trial.overrides, *place, "--resume"]
    parent = os.getpid()
    with _output(trial, runs_dir).open("wb") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)}, preexec_fn=lambda: die_with(parent),
        )


def _output(trial: Trial, runs_dir: Path) -> Path:
    return runs_dir / f"{trial.name}.out"


def _require_good(trial: Trial, code: int, runs_dir: Path) -> None:
    """A run whose numbers blew up is a result; any other failure ends the whole."""
    output = _output(trial, runs_dir)
    lines = output.read_text(errors="replace").strip().splitlines()
    if code == 0:
        output.unlink()
    elif code == 1 and any("is not finite" in line for line in lines) and trial.folder(runs_dir).is_dir():
        (trial.folder(runs_dir) / DIVERGED).touch()
    else:
        raise UserError(f"{trial.name}: training ended with {code}: {lines[-1] if lines else 'without a word'}; "
                        f"all that it said: {output}")
