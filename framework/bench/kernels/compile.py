"""Compile every launch of the kernels for sm_90 on a machine without a GPU."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import NamedTuple

import torch

from framework.bench.kernels import machine_code
from framework.bench.kernels.case import Case, forward_and_backward
from framework.bench.kernels.driver import pretend
from framework.bench.kernels.launches import Launch, distinct, recorded, titles
from kernels.backend import use_backend
from kernels.operator import opened

PR_SET_PDEATHSIG = 1
PRODUCT = re.compile(r"tt\.dot .*x(?:bf16|f16)> \*")
"""In Triton's intermediate code, of 16-bit numbers: float32's to the last digit are not the tensor cores'."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Compiled:
    """A kernel's machine code in numbers.

    config: the case that launched it first, and the kernel's constants. registers, spill_bytes: of a thread.
    shared_bytes: of a program. products: matrix products of 16-bit numbers in the source. tensor_core_instructions:
    HGMMA.
    store_bits, load_bits: the widest access to global memory, 0 where there is none. stores: all widths of stores.
    fingerprint: of the source and the arguments' kinds.
    """

    kernel: str
    config: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    products: int
    tensor_core_instructions: int
    store_bits: int
    stores: tuple[int, ...]
    load_bits: int
    fingerprint: str


class Compilation(NamedTuple):
    """What compiled, and of what did not a line each: the kernel and why."""

    rows: list[Compiled]
    faults: list[str]


def launches_of(cases: Iterable[Case], checked: bool = False) -> list[Launch]:
    """The distinct launches of all cases' forward and backward, by tensors without memory.

    checked: those of the comparison with float64 too, which takes fewer tokens.
    """
    launches = []
    for case in cases:
        with use_backend("triton"), opened(), recorded(case.config) as found:
            for num_tokens in (None, case.check_tokens) if checked else (None,):
                forward_and_backward(case.run, case.arguments(torch.device("meta"), num_tokens))
        launches += found
    return distinct(launches)


def compile_launches(launches: Sequence[Launch], progress: Progress = lambda done, total: None) -> Compilation:
    """In processes of their own, as many as the machine has cores, up to 16."""
    # Forked, so that launches need not travel: a kernel is found by no name where it is defined within a function.
    global _launches
    _launches = list(zip(launches, titles(launches), strict=True))
    workers = max(1, min(16, len(launches), os.cpu_count() or 1))
    with ProcessPoolExecutor(workers, get_context("fork"), initializer=_begin) as pool:
        futures = [pool.submit(_compile_at, place) for place in range(len(launches))]
        found = []
        for done, future in enumerate(futures, 1):
            found.append(future.result())
            progress(done, len(futures))
    return Compilation([row for row in found if isinstance(row, Compiled)],
                       [fault for fault in found if isinstance(fault, str)])


def show_progress(done: int, total: int) -> None:
    """A bar on standard error, where someone sees it."""
    if sys.stderr.isatty():
        bar = "#" * (40 * done // total)
        print(f"\r{bar:.<40} {done}/{total} kernels", end="\n" if done == total else "", file=sys.stderr, flush=True)


_launches: Sequence[tuple[Launch, str]] = ()


def _begin() -> None:
    """Of a process that compiles: it ends with the one that started it, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    pretend()


def _compile_at(place: int) -> Compiled | str:
    launch, title = _launches[place]
    try:
        compiled = launch.kernel.warmup(**launch.arguments, **launch.options, grid=(1,))
    except Exception as problem:  # whatever the compiler raises is this kernel's fault, and no other's
        lines = str(problem).splitlines() or [""]
        return f"{launch.name}, {title}: does not compile: {type(problem).__name__}: {lines[-1][:200]}"
    code = machine_code.read(compiled.asm["cubin"])
    return Compiled(
        kernel=launch.name, config=title,
        registers=code.registers, spill_bytes=code.spill_bytes, shared_bytes=compiled.metadata.shared,
        products=len(PRODUCT.findall(compiled.asm["ttir"])), tensor_core_instructions=code.tensor_core_instructions,
        store_bits=max(code.stores, default=0), stores=tuple(sorted(code.stores)),
        load_bits=max(code.loads, default=0), fingerprint=launch.fingerprint,
    )
