"""The command: compile all kernels, or time them, and say it in a table or in JSON."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch

from framework.bench.kernels import table
from framework.bench.kernels.case import Case
from framework.bench.kernels.cases import all_cases
from framework.bench.kernels.compile import compile_launches, launches_of, show_progress
from framework.bench.kernels.floor import H100, measure
from framework.bench.kernels.gate import all_faults, table_faults
from framework.bench.kernels.timed import time_cases
from kernels import language

BUDGET = 440
"""Seconds after which no further case begins: a run ends within eight minutes."""


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 where all is well, 1 where a kernel is not, 2 for a mistake."""
    parser = argparse.ArgumentParser("python -m framework.bench.kernels", description=__doc__)
    parser.add_argument("--compile-only", action="store_true", help="compile for sm_90; needs no GPU")
    parser.add_argument("--check", action="store_true", help="fail where the table of compiled kernels is not theirs")
    parser.add_argument("--floors", action="store_true", help="print an H100's floors; needs no GPU")
    parser.add_argument("--only", metavar="NAME", help="kernels and shapes whose name contains this")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    if not language.AVAILABLE:
        return _refuse("Triton is not installed, and there is nothing else to measure")
    try:
        cases = all_cases(given.only)
    except ValueError as mistake:
        return _refuse(str(mistake))
    if given.floors:
        print(table.floors_text(cases, H100))
        return 0
    if given.check:
        return _complain(table_faults(all_cases()))
    if given.compile_only:
        return _compile(cases, given.only is None, given.json)
    if not torch.cuda.is_available():
        return _refuse("there is no GPU here to time kernels on; allowed: --compile-only, --floors")
    return _time(cases, given.json)


def _compile(cases: list[Case], is_all: bool, as_json: bool) -> int:
    rows = compile_launches(launches_of(cases), show_progress)
    if is_all and table.DOCS.is_dir():
        table.compiled_file().write_text(table.compiled_text(rows))
    print(json.dumps({"rows": [asdict(row) for row in rows]}) if as_json else table.compiled_text(rows))
    return _complain(all_faults(rows))


def _time(cases: list[Case], as_json: bool) -> int:
    started = time.monotonic()
    cases, rows = [case for case in cases if case.timed], []
    # Into Triton's cache, by all cores at once: one after another they would take longer than all timing.
    compile_launches(launches_of(cases, checked=True), show_progress)
    place, ceilings = torch.cuda.get_device_name(), measure()
    for row in time_cases(cases, ceilings, torch.device("cuda"), budget_seconds=BUDGET - time.monotonic() + started):
        rows.append(row)
        took = row.fault or f"{row.milliseconds:.3f} ms, {row.of_floor:.0%} of the floor"
        print(f"{row.kernel}, {row.shape}, {row.direction}: {took}", file=sys.stderr)
    if as_json:
        print(json.dumps({"device": place, **ceilings._asdict(), "rows": [row.as_dict() for row in rows]}))
    else:
        print(f"{place}: {ceilings.flops_per_second / 1e12:.0f} TFLOP/s of a product, "
              f"{ceilings.bytes_per_second / 1e12:.2f} TB/s of a copy\n\n{table.timed_text(rows)}")
    return 1 if any(row.fault and not row.fault.startswith("not measured") for row in rows) else 0


def _complain(found: list[str]) -> int:
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


def _refuse(message: str) -> int:
    print(f"upmix: {message}", file=sys.stderr)
    return 2
