"""The run that is upcycled: found and read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from framework.errors import UserError
from framework.recipe import Loaded, load_recipe
from framework.training.checkpoint_names import NAME, steps_present


@dataclass(frozen=True)
class Source:
    """run: its folder. step: of the checkpoint that was asked for; None: the newest good one. loaded: its recipe."""

    run: Path
    step: int | None
    loaded: Loaded


def find_source(path: str | Path, step: int | None = None) -> Source:
    """A run folder, or one checkpoint of it, RUN/checkpoints/step_N.

    Raises UserError where there is neither, where a step is named twice, or where nothing was ever saved.
    """
    path = Path(path)
    run, named = path, NAME.fullmatch(path.name)
    if named and path.absolute().parent.name == "checkpoints":
        if step is not None:
            raise UserError(f"--step {step} beside {path}; allowed: one of them")
        run, step = path.absolute().parents[1], int(named.group(1))
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{path}: no run here; allowed: a folder that `upmix train` made, or RUN/checkpoints/step_N")
    checkpoints = run / "checkpoints"
    present = steps_present(checkpoints)
    if not present or step not in (None, *present):
        wanted = "" if step is None else f" of step {step}"
        raise UserError(f"{checkpoints}: no checkpoint{wanted}; there are: {', '.join(map(str, present)) or 'none'}")
    return Source(run, step, load_recipe(str(run / "recipe.yaml")))
