"""Throughput that can be believed: whole optimizer steps of a recipe, peers measured in the same run, and `kernels`.

`train` asks contestants, each in a process of its own (`contestant`, `serve`), for their turns, and `results` says what
these mean. `ours` is the recipe as it is trained, `peers` the same in `huggingface` and `megatron`. `phases` (on a
`timeline`), `communication`, `overhead`, `balanced`, `memory`, `peak` and `flops` are what is measured.

Names are looked up when they are asked for: `framework.bench.kernels` must do without what recipes are read with.
"""

from parallel.lazy import lazily

_HOMES = {
    "ContestantFailure": "contestant", "Options": "train", "PEERS": "peers", "ROUTINGS": "train",
    "StepBenchmark": "results", "bench_as_rank": "train", "bench_train": "train", "lines": "table",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
