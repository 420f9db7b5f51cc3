"""Tasks on a Hugging Face folder, by lm-eval's own model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import UserError
from framework.packages import require_package
from framework.tasks.harness import quiet

if TYPE_CHECKING:
    from framework.tasks.harness import TaskSet

BATCH_SIZE = 8


def is_exported(folder: Path) -> bool:
    """Whether a folder is one of transformers', and no run."""
    return (folder / "config.json").is_file() and not (folder / "recipe.yaml").exists()


def run_exported(
    folder: Path, tasks: TaskSet, batch_size: int | None, limit: int | None, bootstrap: int
) -> dict[str, Any]:
    """lm-eval's results for its model `hf` of a folder, in float32; weights are read from safetensors alone.

    Raises UserError where a package is missing, transformers cannot load the folder, or lm-eval refuses a task for it.
    """
    for package in ("transformers", "accelerate"):
        require_package(f"--tasks of {folder}", package)
    import torch
    from lm_eval.models.huggingface import HFLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with quiet():
        try:
            model = HFLM(pretrained=str(folder), dtype="float32", device=device, batch_size=batch_size or BATCH_SIZE,
                         use_safetensors=True, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder}: transformers cannot load it ({error})") from error
    try:
        return tasks.run(model, limit, bootstrap)
    except AssertionError as error:  # how lm-eval says that a task does not fit a model
        raise UserError(f"{folder}: {error}") from error
