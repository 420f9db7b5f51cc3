"""Throughput that can be believed: whole optimizer steps of a recipe, peers measured in the same run, and `kernels`.

Names are looked up when they are asked for: `framework.bench.kernels` must do without what recipes are read with.
"""

from typing import Any

__all__ = ["StepBenchmark", "bench_train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from framework.bench import train

    return getattr(train, name)
