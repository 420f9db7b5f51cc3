"""The part of a list of layers that repeats."""

from collections.abc import Sequence


def repeating_end(layers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split layers into (head, period) with layers = head + k * period, k >= 1, as short as possible together.

    `* E * E * E` gives no head and `* E`; `* - * E * E` gives `* -` and `* E`.
    """
    shortest = len(layers)
    best = shortest
    for period in range(1, len(layers)):
        if period >= best:
            break
        same = 0
        while same < len(layers) - period and layers[-1 - same] == layers[-1 - same - period]:
            same += 1
        repeats = 1 + same // period
        if (length := len(layers) - (repeats - 1) * period) < best:
            best, shortest = length, period
    return list(layers[: best - shortest]), list(layers[len(layers) - shortest :])


def shorten_layers(layers: Sequence[str], at_least: int) -> list[str]:
    """One period of the layers after what stands before it; as many periods as it takes to be `at_least` layers."""
    head, period = repeating_end(layers)
    num_periods = max(1, -(-(at_least - len(head)) // len(period)))
    return head + num_periods * period
