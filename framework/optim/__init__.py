"""Optimizers and learning-rate schedules."""

from parallel.lazy import lazily

_HOMES = {
    "ShardedAdamW": "adamw",
    "build_adamw": "adamw",
    "decay_shape": "schedule",
    "endpoints": "schedule",
    "last_full_step": "schedule",
    "learning_rate": "schedule",
    "set_learning_rates": "adamw",
    "warmup_factor": "schedule",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
