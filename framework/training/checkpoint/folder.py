"""checkpoints/: which of them are there, which is kept, which is good."""

import re
import shutil
from pathlib import Path

from framework.training.checkpoint.manifest import DamagedCheckpoint, verify
from framework.training.checkpoint.safe_reader import SafeReader
from framework.training.files import sync_folder

NAME = re.compile(r"step_(\d+)")


def checkpoint_folder(root: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps stands."""
    return root / f"step_{step}"


def temporary_folder(root: Path, step: int) -> Path:
    """Where it is being written; `clear_leftovers` removes it after a crash."""
    return root / f".step_{step}.tmp"


def steps_present(root: Path) -> list[int]:
    """Steps of the checkpoints under `root`, rising; damaged ones count too."""
    names = (NAME.fullmatch(path.name) for path in root.glob("step_*"))
    return sorted(int(name.group(1)) for name in names if name)


def clear_leftovers(root: Path) -> None:
    """Remove what a crash left under temporary names."""
    for path in root.glob(".step_*.tmp"):
        shutil.rmtree(path)


def set_aside(root: Path, step: int) -> None:
    """Rename a damaged checkpoint, so that its step can be written again."""
    target = root / f"step_{step}.damaged"
    shutil.rmtree(target, ignore_errors=True)
    checkpoint_folder(root, step).rename(target)


def remove(root: Path, step: int) -> None:
    """Delete a checkpoint; a crash in the middle leaves only a temporary name."""
    temporary = temporary_folder(root, step)
    checkpoint_folder(root, step).rename(temporary)
    sync_folder(root)
    shutil.rmtree(temporary)


def surplus(steps: list[int], keep_last: int | None, keep_every: int | None) -> list[int]:
    """The steps that the rules of retention let go: neither among the newest nor a multiple that is kept for ever."""
    if keep_last is None:
        return []
    return [step for step in sorted(steps)[:-keep_last] if not (keep_every and step % keep_every == 0)]


def damage(root: Path, step: int, index: int = 0, count: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None; of `count` ranks, number `index` looks at its share of the files."""
    try:
        verify(checkpoint_folder(root, step), index, count)
        SafeReader(checkpoint_folder(root, step) / "state").read_metadata()
    except DamagedCheckpoint as error:
        return str(error)
    return None
