"""Rows into TensorBoard and Weights & Biases."""

from pathlib import Path
from typing import Any

from framework.training.callbacks.base import Callback


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row, named KIND/FIELD, without the step."""
    return {f"{row['kind']}/{name}": value for name, value in row.items()
            if name != "step" and isinstance(value, int | float)}


class TensorBoard(Callback):
    """Curves under RUN/tensorboard. `first_step`: what an earlier attempt wrote from here on is hidden."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step, flush_secs=30)

    def row(self, row: dict[str, Any]) -> None:
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Callback):
    """The same numbers at Weights & Biases; a resumed run goes on under its id. WANDB_MODE=offline works."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        import wandb

        identity = folder / "wandb_id"
        if not identity.exists():
            identity.write_text(wandb.util.generate_id())
        self._run = wandb.init(project="upmix", name=folder.name, id=identity.read_text(), resume="allow",
                               dir=str(folder), config=recipe)

    def row(self, row: dict[str, Any]) -> None:
        self._run.log(scalars(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()
