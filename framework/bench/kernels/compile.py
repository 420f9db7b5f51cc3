"""Compile every launch of the kernels for sm_90 on a machine without a GPU."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from framework.bench.kernels import machine_code
from framework.bench.kernels.case import Case, forward_and_backward
from framework.bench.kernels.driver import pretend
from framework.bench.kernels.launches import Launch, distinct, recorded, titles
from kernels.backend import use_backend
from kernels.operator import opened

PR_SET_PDEATHSIG = 1

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Compiled:
    """A kernel's machine code in numbers.

    config: the case that launched it first, and the kernel's constants. registers, spill_bytes: of a thread.
    shared_bytes: of a program. products: matrix products in the source. tensor_core_instructions: HGMMA.
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


def compile_launches(launches: Sequence[Launch], progress: Progress = lambda done, total: None) -> list[Compiled]:
    """In processes of their own, as many as the machine has cores, up to 16."""
    # Forked, so that launches need not travel: a kernel is found by no name where it is defined within a function.
    global _launches
    _launches = list(zip(launches, titles(launches), strict=True))
    workers = max(1, min(16, len(launches), os.cpu_count() or 1))
    with ProcessPoolExecutor(workers, get_context("fork"), initializer=_begin) as pool:
        futures = [pool.submit(_compile_at, place) for place in range(len(launches))]
        rows = []
        for done, future in enumerate(futures, 1):
            rows.append(future.result())
            progress(done, len(futures))
    return rows


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


def _compile_at(place: int) -> Compiled:
    launch, title = _launches[place]
    try:
        compiled = launch.kernel.warmup(**launch.arguments, **launch.options, grid=(1,))
    except Exception as problem:
        raise RuntimeError(f"{launch.name}, {title}: does not compile") from problem
    code = machine_code.read(compiled.asm["cubin"])
    return Compiled(
        kernel=launch.name, config=title,
        registers=code.registers, spill_bytes=code.spill_bytes, shared_bytes=compiled.metadata.shared,
        products=compiled.asm["ttir"].count("tt.dot "), tensor_core_instructions=code.tensor_core_instructions,
        store_bits=max(code.stores, default=0), stores=tuple(sorted(code.stores)),
        load_bits=max(code.loads, default=0), fingerprint=launch.fingerprint,
    )
