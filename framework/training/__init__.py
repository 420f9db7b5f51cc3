"""The loop, its callbacks, metrics, checkpoints and run folders."""

import importlib

_HOMES = {
    "Admission": "run_folder",
    "LoadedRun": "load",
    "TrainingFailure": "trainer",
    "admit": "run_folder",
    "admit_parts": "parts",
    "choose_step": "load",
    "evaluate": "evaluation",
    "list_slides": "slides",
    "load_run": "load",
    "parts_of": "parts",
    "slide_recipe": "slides",
    "train": "start",
    "train_parts": "start",
    "under_way": "parts",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    # Looked up when asked for: a command that only looks at a run folder must not wait for torch to import.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
