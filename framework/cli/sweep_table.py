"""The tables of `upmix sweep`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from framework.sweep import Cell, Sweep
    from framework.sweep.costs import Cost

COLUMNS = ("params", "active", "tokens", "FLOPs", "GPUs", "hours", "done")
DASH = "-"
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def print_costs(sweep: Sweep, found: Sequence[Cost], runs_dir: Path, tflops: float | None) -> None:
    """A row for each cell, and what all of them come to."""
    from rich.console import Console

    from framework.sweep.names import key_tails

    tails = key_tails(list(dict.fromkeys(key for cell in sweep.cells for key in cell.changes)))
    changed = [key if tail in COLUMNS else tail for key, tail in tails.items()]
    header = ["cell", *changed, *COLUMNS]
    console = Console()
    count = _short if console.is_terminal else _whole
    rows = [_row(cell, cost, list(tails), count) for cell, cost in zip(sweep.cells, found, strict=True)]
    if console.is_terminal:
        _draw(console, header, rows, len(tails))
    else:
        _print(header, rows)
    print("\n".join(_footer(sweep, found, runs_dir, tflops)))


def _row(cell: Cell, cost: Cost, keys: Sequence[str], count: Callable[[int], str]) -> list[str]:
    changes = [_text(cell.changes[key]) if key in cell.changes else "" for key in keys]
    hours = DASH if cost.hours is None else _hours(cost.hours)
    tokens = DASH if cost.tokens is None else count(cost.tokens)
    flops = DASH if cost.flops is None else f"{cost.flops:.3g}"
    return [cell.name, *changes, count(cost.params_total), count(cost.params_active), tokens, flops,
            str(cost.gpus), hours, "yes" if cost.finished else ""]


def _text(value: object) -> str:
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.3g}"


def _footer(sweep: Sweep, found: Sequence[Cost], runs_dir: Path, tflops: float | None) -> list[str]:
    from framework.sweep.costs import ASSUMED_SHARE, ASSUMED_TERAFLOPS, H100_TERAFLOPS

    left = [cost for cost in found if not cost.finished]
    known = [cost for cost in left if cost.hours is not None]
    gpu_hours = sum(cost.hours * cost.gpus for cost in known)
    speed = (f"{tflops:g} teraFLOP/s a GPU (--tflops)" if tflops is not None else
             f"{ASSUMED_TERAFLOPS:g} teraFLOP/s a GPU, {ASSUMED_SHARE:.0%} of an H100's {H100_TERAFLOPS:g} "
             "(an assumption; --tflops states another)")
    lines = [f"{len(found):,} cells, {len(found) - len(left):,} of them finished in {runs_dir / sweep.name}",
             f"to train: {len(left):,} cells, {sum(cost.flops for cost in known):.3g} FLOPs, "
             f"{_hours(gpu_hours)} GPU-hours",
             f"hours at {speed}"]
    if len(known) < len(left):
        lines.append(f"{len(left) - len(known):,} cells have no length (training.steps or training.tokens)")
    return lines


def _whole(number: int) -> str:
    return f"{number:,}"


def _short(number: int) -> str:
    return next((f"{number / unit:.3g}{letter}" for unit, letter in UNITS if number >= unit), str(number))


def _print(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """As wide as it is: nobody's terminal has to hold it."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for name, *numbers in (header, *rows):
        cells = [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *cells]).rstrip())


def _draw(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]], num_changes: int) -> None:
    """On a terminal; where that is too narrow, without the columns of changed fields, which the names tell too."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    fits = sum(widths) + 3 * len(widths) + 1 <= console.width
    shown = [index for index in range(len(header)) if fits or not 0 < index <= num_changes]
    table = Table(box=SIMPLE)
    for index in shown:
        table.add_column(Text(header[index]), overflow="fold", no_wrap=index > 0, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(Text(row[index]) for index in shown))
    console.print(table)
