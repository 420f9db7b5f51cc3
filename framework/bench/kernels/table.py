"""Tables in Markdown, the same for the same rows wherever they are made, and the compiled kernels' read back."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

import triton

from framework.bench.kernels.case import Case
from framework.bench.kernels.compile import Compiled
from framework.bench.kernels.floor import Ceilings
from framework.bench.kernels.timed import Timed, floors_of

DOCS = Path(__file__).parents[3] / "docs"
OF_THE_HOST = ("Times are the GPU's, with all launched before it begins; host is what launching takes, which is the "
               "time where it is longer and the GPU has nothing else to do.")
HEADINGS = {
    "kernel": "kernel", "config": "first launched by, and its constants", "registers": "registers",
    "spill_bytes": "spilled", "shared_bytes": "shared", "products": "products", "tensor_core_instructions": "HGMMA",
    "store_bits": "store", "stores": "all stores", "load_bits": "load", "fingerprint": "fingerprint",
}
assert list(HEADINGS) == [field.name for field in fields(Compiled)], "a column for each field"


def compiled_file(folder: Path = DOCS) -> Path:
    """The table for the installed Triton."""
    return folder / f"kernels_sm90_triton{'.'.join(triton.__version__.split('.')[:2])}.md"


def compiled_text(rows: Sequence[Compiled]) -> str:
    version = ".".join(triton.__version__.split(".")[:3])
    return f"""# Kernels compiled for sm_90 by Triton {version}

Written by `upmix bench kernels --compile-only`; kernels.md says what the kernels do. A row is one compilation: launches
that differ in nothing that the compiler sees share it. Registers and spilled bytes are of a thread, shared bytes of a
program; products are matrix products of 16-bit numbers in the source, HGMMA a warpgroup's instructions for them; widths
of accesses to global memory are in bits: the widest store, those of all stores, the widest load. The fingerprint
changes with the kernel's code and its arguments' kinds.

{markdown(list(HEADINGS.values()), ([_cell(getattr(row, name)) for name in HEADINGS] for row in rows))}
"""


def read_compiled(file: Path) -> list[Compiled]:
    """The rows of a table as `compiled_text` wrote it; none where there is no file. ValueError for another table."""
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    names = list(HEADINGS)
    return [Compiled(**{name: _value(name, cell) for name, cell in zip(names, row, strict=True)}) for row in rows]


def floors_text(cases: Iterable[Case], ceilings: Ceilings) -> str:
    """Floors by formula, for a table of which nothing was measured."""
    rows = ([*list(row.values())[:3], f"{row['floor_milliseconds']:.3f}", "not measured"]
            for row in floors_of(cases, ceilings))
    return markdown(["kernel", "shape", "pass", "floor, ms", "time, ms"], rows)


def timed_text(rows: Iterable[Timed]) -> str:
    text = markdown(
        ["kernel", "shape", "pass", "floor, ms", "time, ms", "of the floor", "host, ms", "peers, ms", "error"],
        ([row.kernel, row.shape, row.direction, f"{row.floor_milliseconds:.3f}",
          row.fault or f"{row.milliseconds:.3f}", "" if row.of_floor is None else f"{row.of_floor:.0%}",
          "" if row.host_milliseconds is None else f"{row.host_milliseconds:.3f}",
          "; ".join(f"{name}: {took if isinstance(took, str) else f'{took:.3f}'}" for name, took in row.peers.items()),
          "" if row.error is None else f"{row.error:.1e}"] for row in rows),
    )
    return f"{text}\n\n{OF_THE_HOST}"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _value(name: str, cell: str) -> object:
    if name in ("kernel", "config", "fingerprint"):
        return cell
    return tuple(map(int, cell.split())) if name == "stores" else int(cell)
