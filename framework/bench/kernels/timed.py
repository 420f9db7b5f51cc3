"""Time every case on the GPU at hand, after its results were found right."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch

from framework.bench.kernels.case import Arguments, Case, Work, call, forward_and_backward, upstream_gradients
from framework.bench.kernels.check import TOLERANCE, largest_error
from framework.bench.kernels.clock import Times, times_of
from framework.bench.kernels.floor import Ceilings

FORWARD, BOTH = "forward", "forward + backward"

Measure = Callable[[Callable[[], object]], Times]


@dataclass(frozen=True)
class Timed:
    """A case in one direction. Times in milliseconds; error: relative, of results and gradients, before any timing.

    milliseconds: of the GPU, and host_milliseconds of launching, as `Times` has them; None where fault says why. peers:
    the GPU's for the same work done otherwise, or why it was not.
    """

    kernel: str
    shape: str
    direction: str
    floor_milliseconds: float
    milliseconds: float | None = None
    host_milliseconds: float | None = None
    error: float | None = None
    fault: str | None = None
    peers: dict[str, float | str] = field(default_factory=dict)

    @property
    def of_floor(self) -> float | None:
        """The floor's share of the time: 1 is as fast as can be."""
        return None if self.milliseconds is None else self.floor_milliseconds / self.milliseconds

    def as_dict(self) -> dict[str, object]:
        return asdict(self) | {"of_floor": self.of_floor}


def directions(case: Case) -> dict[str, tuple[Work, ...]]:
    """Which passes a case is timed in, and the work of each."""
    if case.gradients_in_forward:
        return {BOTH: case.forward}
    return {FORWARD: case.forward} | ({BOTH: case.forward + case.backward} if case.backward else {})


def floors_of(cases: Iterable[Case], ceilings: Ceilings) -> list[dict[str, object]]:
    """Kernel, shape, direction and floor_milliseconds of each direction of each case that would be timed."""
    return [{"kernel": row.kernel, "shape": row.shape, "direction": row.direction,
             "floor_milliseconds": row.floor_milliseconds}
            for case in cases if case.timed for row in _rows(case, ceilings).values()]


def _rows(case: Case, ceilings: Ceilings) -> dict[str, Timed]:
    """Not timed yet."""
    return {direction: Timed(case.kernel, case.shape, direction, 1e3 * ceilings.seconds(work))
            for direction, work in directions(case).items()}


def time_cases(
    cases: Sequence[Case], ceilings: Ceilings, device: torch.device, measure: Measure = times_of,
    budget_seconds: float = float("inf"),
) -> Iterator[Timed]:
    """A row for each direction of each case, as they come; after budget_seconds no further case is timed."""
    deadline = time.monotonic() + budget_seconds
    for case in cases:
        rows = _rows(case, ceilings)
        if time.monotonic() > deadline:
            yield from (replace(row, fault="not measured: no time left") for row in rows.values())
            continue
        try:
            yield from _time_case(case, rows, device, measure)
        except Exception as problem:  # a kernel that fails is its row's fault, and no other's
            yield from (replace(row, fault=_first_line(problem)) for row in rows.values())
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _time_case(case: Case, rows: dict[str, Timed], device: torch.device, measure: Measure) -> list[Timed]:
    error = largest_error(case, device)
    if error > TOLERANCE:
        known = error if math.isfinite(error) else None
        return [replace(row, error=known, fault=f"wrong by {error:.1e}") for row in rows.values()]
    arguments = case.arguments(device, None)
    found = []
    for direction, row in rows.items():
        times = measure(_pass(case.run, arguments, direction))
        found.append(replace(row, error=error, milliseconds=times.gpu, host_milliseconds=times.host,
                             peers=_peers(case, arguments, direction, measure)))
    return found


def _pass(function: Callable[..., object], arguments: Arguments, direction: str) -> Callable[[], object]:
    """What is timed: for gradients of the results that are made beforehand."""
    if direction == FORWARD:
        return partial(call, function, arguments)
    return partial(forward_and_backward, function, arguments, upstream_gradients(call(function, arguments)))


def _peers(case: Case, arguments: Arguments, direction: str, measure: Measure) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for name, function in case.peers.items():
        if function is None:
            found[name] = "not installed"
            continue
        try:
            found[name] = measure(_pass(function, arguments, direction)).gpu
        except Exception as problem:  # whatever another library raises is its row's, not the run's
            found[name] = _first_line(problem)
    return found


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0][:120]
