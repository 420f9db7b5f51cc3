"""Where checkpoints stand, and which are there. Imports no torch."""

import re
from pathlib import Path

NAME = re.compile(r"step_(\d+)")


def checkpoint_folder(root: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps stands."""
    return root / f"step_{step}"


def steps_present(root: Path) -> list[int]:
    """Steps of the checkpoints under `root`, rising; damaged ones count too."""
    names = (NAME.fullmatch(path.name) for path in root.glob("step_*"))
    return sorted(int(name.group(1)) for name in names if name)
