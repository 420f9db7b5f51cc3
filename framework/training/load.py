"""A run read back for use: its recipe, its tokenizer, and its model in one process."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from framework.data import load_tokenizer
from framework.errors import UserError
from framework.model import LanguageModel, build_language_model
from framework.parametrization import widths
from framework.recipe import load_recipe
from framework.training.checkpoint import (
    DamagedCheckpoint,
    checkpoint_folder,
    damage,
    load,
    model_tensors,
    steps_present,
)
from framework.training.peers import Peers

if TYPE_CHECKING:
    from framework.data import Tokenizer
    from framework.recipe import Loaded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedRun:
    """step: of the checkpoint. model: plain float32, in evaluation mode. tokenizer: None if the run had none."""

    loaded: Loaded
    model: LanguageModel
    step: int
    tokenizer: Tokenizer | None


def load_run(path: str | Path, step: int | None = None, device: torch.device | str = "cpu") -> LoadedRun:
    """Load a run folder's newest good checkpoint, or that of a step.

    Raises UserError where there is no run, no checkpoint, or none that is good.
    """
    path = Path(path)
    if not (path / "recipe.yaml").is_file():
        raise UserError(f"{path}: no run here; allowed: a folder that `upmix train` made")
    loaded = load_recipe(str(path / "recipe.yaml"))
    step = choose_step(path / "checkpoints", step)
    with torch.device("meta"):
        model = build_language_model(loaded.architecture, widths(loaded.recipe, loaded.architecture))
    model.to_empty(device=device)
    try:
        load(checkpoint_folder(path / "checkpoints", step), model_tensors(model), Peers())
    except DamagedCheckpoint as error:
        raise UserError(f"{path}: {error}") from None
    return LoadedRun(loaded, model.eval(), step, _tokenizer(path))


def choose_step(root: Path, wanted: int | None = None) -> int:
    """The wanted step, or that of the newest good checkpoint; a damaged one on the way is reported in a line."""
    present = steps_present(root)
    if wanted is not None and wanted not in present:
        raise UserError(f"{root}: no checkpoint of step {wanted}; there are: {', '.join(map(str, present)) or 'none'}")
    for step in reversed(present) if wanted is None else [wanted]:
        if (reason := damage(root, step)) is None:
            return step
        logger.warning("checkpoint step_%d is damaged (%s)", step, reason)
    raise UserError(f"{root}: no good checkpoint" + (f" of step {wanted}" if wanted is not None else ""))


def _tokenizer(path: Path) -> Tokenizer | None:
    stored = [path / name for name in ("tokenizer.model", "tokenizer.json") if (path / name).is_file()]
    return load_tokenizer(stored[0]) if stored else None
