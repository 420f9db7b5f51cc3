"""Tensor and sequence parallelism: modules whose width is split over ranks, with sequence shards between them.

`boundary` joins a module to the sequence shards around it, `groups` picks what a rank's heads read of what all ranks
hold, `norm` takes statistics over a width that is split.
"""

from parallel.tensor.boundary import gather_input, scatter_output, sum_output
from parallel.tensor.groups import pick_groups
from parallel.tensor.norm import gated_normalize_groups, normalize_groups

__all__ = [
    "gather_input", "gated_normalize_groups", "normalize_groups", "pick_groups", "scatter_output", "sum_output",
]
