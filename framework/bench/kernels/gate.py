"""What compiled kernels must not do, and whether the table that says so is of the kernels as they are."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from framework.bench.kernels.case import Case
from framework.bench.kernels.compile import Compiled, compile_launches, launches_of
from framework.bench.kernels.driver import SHARED_BYTES
from framework.bench.kernels.table import compiled_file, read_compiled

COPIES = {
    "copy_rows": (), "copy_weighted_rows": (32,), "add_rows": (), "push_rows": (), "push_copies": (32,),
    "pull_rows": (), "pull_copies": (), "copy_arrived": (),
}
"""Kernels that move rows of 16-bit numbers, and the widths in bits of other numbers that they store beside."""

SAMPLE = ("add_rows", "copy_rows", "gated_norm_forward")
"""Quickly compiled: what a table says of them is tried each time."""

HOW = "run `upmix bench kernels --compile-only`"


def faults(row: Compiled) -> list[str]:
    """Each in a few words; none for a kernel that may be shipped."""
    found = []
    if row.spill_bytes:
        found.append(f"spills {row.spill_bytes} bytes a thread")
    if row.shared_bytes > SHARED_BYTES:
        found.append(f"takes {row.shared_bytes} bytes of shared memory, of {SHARED_BYTES}")
    if row.tensor_core_instructions < row.products:
        found.append(f"multiplies matrices without tensor cores: {row.tensor_core_instructions} instructions of a "
                     f"warpgroup for {row.products} products")
    if row.kernel in COPIES:
        narrow = set(row.stores) - {128, *COPIES[row.kernel]}
        if narrow or 128 not in row.stores:
            found.append(f"copies {min(narrow or row.stores, default=0) // 8} bytes at a time, not 16")
    return found


def all_faults(rows: Iterable[Compiled]) -> list[str]:
    return [f"{row.kernel}, {row.config}: {fault}" for row in rows for fault in faults(row)]


def table_faults(cases: Sequence[Case]) -> list[str]:
    """What is wrong with the kernels in the table of the installed Triton, or with the table itself.

    It must have each launch of the cases by its fingerprint and no other, and say of a sample what compiling it says.
    """
    file = compiled_file()
    try:
        rows_read = read_compiled(file)
    except ValueError as problem:
        return [f"{file.name} cannot be read ({problem}): {HOW}"]
    launches = {(launch.name, launch.fingerprint): launch for launch in launches_of(cases)}
    rows = {(row.kernel, row.fingerprint): row for row in rows_read}
    lacking = [f"{launch.name}, {launch.config}" for key, launch in launches.items() if key not in rows]
    needless = [f"{row.kernel}, {row.config}" for key, row in rows.items() if key not in launches]
    sample = [next(launch for launch in launches.values() if launch.name == name) for name in SAMPLE]
    rows_of_sample, failed = compile_launches(sample)
    wrong = [f"{new.kernel}, {new.config}" for new in rows_of_sample
             if (old := rows.get((new.kernel, new.fingerprint))) and replace(old, config=new.config) != new]
    strange = [f"no kernel is called {name}, which the gate holds to be a copy"
               for name in COPIES if name not in {launch.name for launch in launches.values()}]
    return [
        *_listed(f"{file.name} lacks", lacking), *_listed(f"{file.name} has what is launched no more:", needless),
        *_listed(f"{file.name} is wrong on", wrong), *strange, *failed, *all_faults(rows.values()),
    ]


def _listed(said: str, kernels: Sequence[str]) -> list[str]:
    """One line of what is wrong with a table, with the first kernel in full; none where there are no kernels."""
    if not kernels:
        return []
    others = f" and {len(kernels) - 1} others" if len(kernels) > 1 else ""
    return [f"{said} {kernels[0]}{others}: {HOW}"]
