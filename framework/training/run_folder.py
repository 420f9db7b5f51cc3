"""The folder of a run: where everything stands, who may write there, and what a resume may change.

    recipe.yaml     the resolved recipe          origins.json    where each of its values came from
    data.json       what data it is on           tokenizer.*     a copy of its tokenizer
    metrics.jsonl   one JSON object a line       tensorboard/    the same as curves
    checkpoints/    step_N/                      loss.png        drawn at the end
    code/           commit and diff of the code  log             what rank 0 said
    stacks/         written by the watchdog      DONE            the last step, when training is over
    .lock           held by the one writer       job/            what was submitted to SLURM

and, where the recipe asks for them, profile/, memory/ and wandb_id.
"""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING

from framework.errors import UserError
from framework.files import write_atomically
from framework.recipe.tree import flatten
from framework.training.budget import make_budget
from framework.training.code_state import write_code_state
from framework.training.lock import lock_folder

if TYPE_CHECKING:
    from framework.recipe import Loaded
    from framework.recipe.schema import Recipe

CHANGEABLE = ("parallel.*", "checkpoint.*", "data.micro_batch_size", "training.steps", "tags")
BEFORE_RECIPE = {".lock", ".origins.json.tmp", "origins.json", ".recipe.yaml.tmp"}
"""What a run that was killed before its recipe was stored may have left in its folder."""
SUBMITTED = "job"
"""The folder in a run's folder that is there before the run, where the run is a job's."""


class Admission(StrEnum):
    """What a run folder allows."""

    FRESH = "fresh"
    RESUMED = "resumed"
    FINISHED = "finished"


def admit(path: Path, loaded: Loaded, resume: bool) -> Admission:
    """Decide how a run of this recipe may use a folder; changes nothing.

    Raises UserError for an existing folder without `resume`, unless it holds nothing but what was submitted; for one
    that cannot be made or is no run's, and for a resume that changes more than CHANGEABLE.
    """
    if not path.exists():
        _refuse_unwritable(path)
        return Admission.FRESH
    is_run = (path / "recipe.yaml").exists()
    if not is_run:
        _refuse_foreign(path)
    if not resume and not is_only_submitted(path):
        raise _already_there(path)
    if not is_run:
        return Admission.FRESH
    from framework.recipe import load_recipe

    stored = load_recipe(str(path / "recipe.yaml")).recipe
    _refuse_changes(path, stored, loaded.recipe)
    finished = _steps_done(path / "DONE") >= make_budget(loaded.recipe.data, loaded.recipe.training).num_steps
    return Admission.FINISHED if finished else Admission.RESUMED


def enter(path: Path, loaded: Loaded, resume: bool) -> tuple[Admission, IO[str]]:
    """Make or take over a run folder for one process; the lock holds as long as the returned file is open.

    Stores recipe and code unless the run is finished already. Raises UserError as `admit` does, and where another
    process holds the folder.
    """
    admit(path, loaded, resume)
    is_there = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=resume or is_there)
        lock = lock_folder(path)
    except FileExistsError:  # another process was a moment faster
        raise _already_there(path) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; allowed: another --runs-dir") from error
    admission = admit(path, loaded, resume or not is_there)
    if admission is not Admission.FINISHED:
        (path / "DONE").unlink(missing_ok=True)
        write_recipe(path, loaded)
        write_code_state(path / "code")
    return admission, lock


def is_only_submitted(path: Path) -> bool:
    """Whether a run's folder holds nothing but what was submitted to SLURM."""
    return (path / SUBMITTED).is_dir() and not _others(path)


def is_begun(path: Path) -> bool:
    """Whether there is more of a run than what was submitted to SLURM."""
    return path.exists() and not is_only_submitted(path)


def _refuse_unwritable(path: Path) -> None:
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: {parent} is no folder that may be written; allowed: another --runs-dir")


def _refuse_foreign(path: Path) -> None:
    if not path.is_dir() or _others(path):
        raise UserError(f"{path}: there, but no run (no recipe.yaml in it); allowed: another --name")


def _others(path: Path) -> set[str]:
    """What stands in a folder beside what may stand there before the run."""
    return {entry.name for entry in path.iterdir() if entry.name != SUBMITTED or not entry.is_dir()} - BEFORE_RECIPE


def _steps_done(path: Path) -> int:
    """The last step of a run that is over; 0 where it is not."""
    try:
        return int(path.read_text()) if path.exists() else 0
    except ValueError:
        raise UserError(f"{path}: damaged; allowed: the number of the last step, or no such file") from None


def _already_there(path: Path) -> UserError:
    return UserError(f"{path}: the run folder exists; allowed: another --name, or --resume to go on with it")


def write_recipe(path: Path, loaded: Loaded) -> None:
    """Store the resolved recipe, and where each value came from beside it."""
    from framework.recipe import dump

    write_atomically(path / "origins.json", json.dumps({key: str(value) for key, value in loaded.origins.items()},
                                                       indent=1) + "\n")
    write_atomically(path / "recipe.yaml", dump(loaded.recipe))


def is_changeable(key: str) -> bool:
    """Whether a resume may change the recipe's field at a dotted key."""
    return any(key == allowed or (allowed.endswith("*") and key.startswith(allowed[:-1])) for allowed in CHANGEABLE)


def _refuse_changes(path: Path, stored: Recipe, given: Recipe) -> None:
    before, after = (flatten(recipe.model_dump(mode="json")) for recipe in (stored, given))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and not is_changeable(key):
            old, new = ("null" if tree.get(key) is None else repr(tree[key]) for tree in (before, after))
            raise UserError(f"{path}: a resume may not change {key} from {old} to {new}; "
                            f"allowed to change: {', '.join(CHANGEABLE)}")
