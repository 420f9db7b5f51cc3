"""Optimizers and learning-rate schedules."""

from framework.optim.adamw import build_adamw, set_learning_rates
from framework.optim.schedule import decay_shape, endpoints, learning_rate, warmup_factor

__all__ = ["build_adamw", "decay_shape", "endpoints", "learning_rate", "set_learning_rates", "warmup_factor"]
