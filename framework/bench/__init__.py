"""Throughput that can be believed: whole optimizer steps of a recipe, and peers measured in the same run."""

from framework.bench.train import StepBenchmark, bench_train

__all__ = ["StepBenchmark", "bench_train"]
