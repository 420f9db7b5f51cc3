"""The loop, its callbacks, metrics, checkpoints and run folders."""

import importlib

_HOMES = {
    "Admission": "run_folder",
    "LoadedRun": "load",
    "TrainingFailure": "trainer",
    "admit": "run_folder",
    "choose_step": "load",
    "evaluate": "evaluation",
    "load_run": "load",
    "train": "start",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    # Looked up when asked for: a command that only looks at a run folder must not wait for torch to import.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
