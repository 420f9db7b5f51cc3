"""A slide's run folder, begun from its trunk's checkpoint: whole or not there, whenever the process dies."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from framework.errors import UserError
from framework.files import atomic_folder, force_to_disk
from framework.training.checkpoint.manifest import DamagedCheckpoint, present_files
from framework.training.checkpoint_names import checkpoint_folder
from framework.training.data_state import FILE_NAME as DATA_FACTS
from framework.training.lock import lock_folder
from framework.training.metrics import FILE_NAME as METRICS
from framework.training.metrics import cut_rows_after
from framework.training.run_folder import SUBMITTED, is_begun, write_recipe

if TYPE_CHECKING:
    from framework.recipe import Loaded
    from framework.training.slides import Slide

logger = logging.getLogger(__name__)


def require_branch(trunk: Path, slide: Slide) -> None:
    """Raise UserError where the trunk's checkpoint that a slide begins with is not there yet, or lacks a file."""
    checkpoint = checkpoint_folder(trunk / "checkpoints", slide.branch_step)
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: not there, and the slide of {slide.length} {slide.unit} branches off it; "
                        f"allowed: once the run {trunk} has come to step {slide.branch_step}")
    try:
        present_files(checkpoint)
    except DamagedCheckpoint as error:
        raise UserError(f"{checkpoint}: damaged ({error}), and the slide of {slide.length} {slide.unit} branches off "
                        "it; allowed: a whole one") from None


def branch_off(trunk: Path, slide: Slide, loaded: Loaded, path: Path) -> None:
    """Make a slide's run folder as if it had been killed after its branch step; does nothing where it is begun.

    loaded: the slide's recipe. The checkpoint's files are hard links to the trunk's where the file system has them,
    else copies. Rows, curves, data's facts and tokenizer are copied; the rows end with the branch step. Made in the
    trunk's folder and then moved. The trunk may go on meanwhile. Raises UserError as `require_branch` does, and where
    another process makes the same folder.
    """
    workroom = trunk / f".{slide.name}"
    if not is_begun(path):
        require_branch(trunk, slide)
        workroom.mkdir(exist_ok=True)
        with closing(lock_folder(workroom)):
            if not is_begun(path):  # else another process was a moment faster
                _make(workroom / "run", trunk, slide.branch_step, loaded, path)
                logger.info("%s branches off after step %d", path.name, slide.branch_step)
    shutil.rmtree(workroom, ignore_errors=True)


def _make(made: Path, trunk: Path, step: int, loaded: Loaded, path: Path) -> None:
    shutil.rmtree(made, ignore_errors=True)
    with atomic_folder(made) as partial:
        _fill(partial, trunk, step, loaded)
    if path.exists():  # with what was submitted alone; killed in between, the slide would be trained from its step 1
        (path / SUBMITTED).rename(made / SUBMITTED)
        shutil.rmtree(path)
    made.rename(path)
    force_to_disk(path.parent)


def _fill(folder: Path, trunk: Path, step: int, loaded: Loaded) -> None:
    write_recipe(folder, loaded)
    for file in (trunk / DATA_FACTS, *trunk.glob("tokenizer*"), trunk / METRICS):
        shutil.copyfile(file, folder / file.name)
    cut_rows_after(folder, step)
    if (trunk / "tensorboard").is_dir():  # what is past the branch, the slide's own first step hides
        shutil.copytree(trunk / "tensorboard", folder / "tensorboard")
    checkpoint = checkpoint_folder(folder / "checkpoints", step)
    shutil.copytree(checkpoint_folder(trunk / "checkpoints", step), checkpoint, copy_function=_link)
    for inner in (checkpoint / "state", checkpoint, checkpoint.parent):
        force_to_disk(inner)


def _link(source: str, target: str) -> None:
    """A hard link: no checkpoint's file is ever written again. A copy, forced to disk, where there are no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        force_to_disk(Path(target))
