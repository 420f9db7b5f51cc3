"""A row of the table: how far a layout is from one rank, and whether that is too far."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from framework.equivalence.measure import Measured
from framework.training.statistics import layer_name

AFTER = (1, 5)


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that pass, each relative."""

    loss: float
    gradient: float
    update: float


# An update is the difference of two weights, each rounded to its own precision: of a weight of size 3 that moves by the
# learning rate, 0.003, float32 keeps the fourth digit. And Adam's g / (|g| + eps) makes small elements of a gradient,
# which are off by a share of the large ones, as large as these.
TOLERANCES = {"float32": Tolerance(1e-5, 1e-4, 1e-3), "float64": Tolerance(1e-10, 1e-10, 1e-9)}


@dataclass(frozen=True)
class Row:
    """A layout against one rank. Differences are ||x - x0|| / ||x0||.

    loss_difference: the larger of those after AFTER[0] and AFTER[1] steps. gradient_difference, update_difference: of
    the first step, the largest over parameters and, in stacks of experts, over single experts, `name[index]`:
    that of gradient_parameter and of update_parameter. untouched_parameters: those whose gradient or update is zero
    although a token reached them. excused_experts: layers' experts that no token reached.
    """

    layout: str
    num_ranks: int
    loss_difference: float
    loss_differences: tuple[float, float]
    gradient_difference: float
    gradient_parameter: str
    update_difference: float
    update_parameter: str
    untouched_parameters: list[str]
    excused_experts: list[str]
    seconds: float

    def passes(self, tolerance: Tolerance) -> bool:
        """Whether nothing is too far off. A difference that is not a number is."""
        return (self.loss_difference <= tolerance.loss and self.gradient_difference <= tolerance.gradient
                and self.update_difference <= tolerance.update and not self.untouched_parameters)


def compare(name: str, num_ranks: int, stages: Sequence[Measured], expected: Measured, seconds: float) -> Row:
    """The row of a layout, from what its pipeline's stages gave, who may hold copies of a parameter."""
    on_stages = {parameter for stage in stages for parameter in stage.gradients}
    assert on_stages == expected.gradients.keys(), f"{name}: on one side only: {on_stages ^ expected.gradients.keys()}"
    losses = tuple(abs(stages[0].losses[n] - expected.losses[n]) / abs(expected.losses[n]) for n in AFTER)
    gradient, parameter = _largest((stage.gradients for stage in stages), expected.gradients, expected.stacked)
    update, updated = _largest((stage.updates for stage in stages), expected.updates, expected.stacked)
    excused = {expert for stage in stages for expert in _without_tokens(stage.tokens_per_expert)}
    untouched = {parameter for stage in stages for parameter in _untouched(stage, excused)}
    return Row(name, num_ranks, float(np.max(losses)), losses, gradient, parameter, update, updated,
               sorted(untouched), sorted(excused), seconds)


def relative_difference(x: np.ndarray, x0: np.ndarray) -> float:
    """||x - x0|| / ||x0||; 0 where both are zero, infinite where only x0 is."""
    x, x0 = x.astype(np.float64), x0.astype(np.float64)
    difference, length = float(np.linalg.norm(x - x0)), float(np.linalg.norm(x0))
    if difference == 0.0:
        return 0.0
    return difference / length if length > 0.0 else float("inf")


def _largest(
    stages: Iterable[Mapping[str, np.ndarray]], expected: Mapping[str, np.ndarray], stacked: frozenset[str]
) -> tuple[float, str]:
    """The largest difference and where it is; one that is not a number is the largest."""
    references = dict(_singles(expected, stacked))
    found = [(relative_difference(array, references[name]), name)
             for arrays in stages for name, array in _singles(arrays, stacked)]
    return max(found, key=lambda entry: (np.isnan(entry[0]), entry[0]))


def _singles(arrays: Mapping[str, np.ndarray], stacked: frozenset[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter whole, and every expert of a stack: a small expert must not hide among large ones."""
    for name, array in arrays.items():
        yield name, array
        if name in stacked:
            yield from ((f"{name}[{index}]", array[index]) for index in range(len(array)))


def _untouched(stage: Measured, excused: set[str]) -> set[str]:
    zero = (name for arrays in (stage.gradients, stage.updates)
            for name, array in _singles(arrays, stage.stacked) if not array.any())
    return {name for name in zero if expert_of(name) not in excused}


def _without_tokens(tokens_per_expert: Mapping[str, list[float]]) -> set[str]:
    return {f"{layer}[{index}]" for layer, counts in tokens_per_expert.items()
            for index, count in enumerate(counts) if count == 0}


def expert_of(name: str) -> str:
    """`layers.1[3]` for `layers.1.block.experts.up[3]`."""
    block, _, rest = name.rpartition(".experts.")
    return f"{layer_name(block)}[{rest.partition('[')[2]}"

