"""Optimizers and learning-rate schedules."""

import importlib

_HOMES = {
    "build_adamw": "adamw",
    "decay_shape": "schedule",
    "endpoints": "schedule",
    "last_full_step": "schedule",
    "learning_rate": "schedule",
    "set_learning_rates": "adamw",
    "warmup_factor": "schedule",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    # Looked up when asked for: a schedule is a pure function, which must not wait for torch to import.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
