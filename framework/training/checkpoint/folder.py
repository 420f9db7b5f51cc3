"""checkpoints/: which of them are there, which is kept, which is good."""

import shutil
from collections.abc import Set
from itertools import chain, count
from pathlib import Path

from framework.files import force_to_disk
from framework.training.checkpoint.manifest import DamagedCheckpoint, verify
from framework.training.checkpoint.safe_reader import SafeReader
from framework.training.checkpoint_names import checkpoint_folder


def temporary_folder(root: Path, step: int) -> Path:
    """Where it is being written; `clear_leftovers` removes it after a crash."""
    return root / f".step_{step}.tmp"


def names_present(root: Path) -> list[str]:
    """Names of all that was once saved under `root` as a whole checkpoint, those that were set aside too."""
    return sorted(path.name for path in root.glob("step_*"))


def clear_leftovers(root: Path) -> None:
    """Remove what a crash left under temporary names."""
    for path in root.glob(".step_*.tmp"):
        shutil.rmtree(path)


def set_aside(root: Path, step: int) -> None:
    """Rename a damaged checkpoint, so that its step can be written again. Nothing is deleted."""
    names = (root / f"step_{step}.damaged{suffix}" for suffix in chain([""], (f".{n}" for n in count(2))))
    checkpoint_folder(root, step).rename(next(name for name in names if not name.exists()))


def remove(root: Path, step: int) -> None:
    """Delete a checkpoint; a crash in the middle leaves only a temporary name."""
    temporary = temporary_folder(root, step)
    checkpoint_folder(root, step).rename(temporary)
    force_to_disk(root)
    shutil.rmtree(temporary)


def surplus(
    steps: list[int], keep_last: int | None, keep_every: int | None, keep_steps: Set[int] = frozenset(),
) -> list[int]:
    """The steps that the rules of retention let go: none of the newest, and no multiple or step that is kept for ever.
    """
    if keep_last is None:
        return []
    kept = {step for step in steps if step in keep_steps or (keep_every and step % keep_every == 0)}
    return [step for step in sorted(steps)[:-keep_last] if step not in kept]


def damage(root: Path, step: int, index: int = 0, num_ranks: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None; of `num_ranks` ranks, number `index` looks at its share of the files.

    Raises UserError for a format of another version.
    """
    try:
        verify(checkpoint_folder(root, step), index, num_ranks)
        SafeReader(checkpoint_folder(root, step) / "state").read_metadata()
    except DamagedCheckpoint as error:
        return str(error)
    return None
