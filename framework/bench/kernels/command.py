"""Compile all kernels, or time them, and say it in a table or in JSON."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import NoReturn

import torch

from framework.bench.kernels import table
from framework.bench.kernels.capture import capture_fault
from framework.bench.kernels.case import Case
from framework.bench.kernels.cases import all_cases
from framework.bench.kernels.compile import compile_launches, launches_of, show_progress
from framework.bench.kernels.floor import H100, measure
from framework.bench.kernels.gate import all_faults, table_faults
from framework.bench.kernels.moe_cases import SHAPES, layer_case
from framework.bench.kernels.options import FLAGS, MODES, ONLY
from framework.bench.kernels.timed import floors_of, time_cases
from kernels import language

BUDGET = 440
"""Seconds after which no further case begins."""

COMPILED_FOR = (9, 0)


class Parser(argparse.ArgumentParser):
    """Says a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_refuse(message))


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 where all is well, 1 where a kernel is not or nothing can be written, 2 for a mistake."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read has enough; nothing more is to be written when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as problem:
        print(f"upmix: cannot write: {problem}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: Sequence[str]) -> int:
    parser = Parser("python -m framework.bench.kernels", description=__doc__)
    for flag, said in FLAGS.items():
        parser.add_argument(flag, action="store_true", help=said)
    parser.add_argument("--only", metavar="NAME", help=ONLY)
    given = parser.parse_args(arguments)
    modes = [flag for flag in MODES if flag in arguments]
    if len(modes) > 1:
        return _refuse(f"{' and '.join(modes)}: one at a time; allowed: {', '.join(MODES)}")
    if given.check and (given.only is not None or given.json):
        return _refuse("--check is of all kernels and prints no JSON; allowed: --check alone")
    if not language.AVAILABLE:
        return _refuse("Triton is not installed, and there is nothing else to measure")
    try:
        cases = all_cases(given.only)
    except ValueError as mistake:
        return _refuse(str(mistake))
    if given.floors:
        print(json.dumps({**H100._asdict(), "rows": floors_of(cases, H100)}) if given.json
              else table.floors_text(cases, H100))
        return 0
    if given.check:
        return _complain(table_faults(cases))
    if given.compile_only:
        return _compile(cases, given.only is None, given.json)
    if not torch.cuda.is_available():
        return _refuse("there is no GPU here to time kernels on; allowed: --compile-only, --floors")
    return _time(cases, given.json)


def _compile(cases: list[Case], is_all: bool, as_json: bool) -> int:
    file = table.compiled_file() if is_all and table.DOCS.is_dir() else None
    if file is not None:
        try:
            file.open("a").close()  # before minutes of work
        except OSError as problem:
            return _refuse(f"{file} cannot be written: {problem.strerror}")
    rows, failed = compile_launches(launches_of(cases), show_progress)
    print(json.dumps({"rows": [asdict(row) for row in rows]}) if as_json else table.compiled_text(rows), flush=True)
    if file is not None:
        file.write_text(table.compiled_text(rows))
    return _complain([*failed, *all_faults(rows)])


def _time(cases: list[Case], as_json: bool) -> int:
    started = time.monotonic()
    cases, rows = [case for case in cases if case.timed], []
    if torch.cuda.get_device_capability() == COMPILED_FOR:
        # Into Triton's cache, by all cores at once: one after another they would take longer than all timing.
        compile_launches(launches_of(cases, checked=True), show_progress)
    else:
        print("this GPU is not of sm_90: kernels are compiled for it as they come", file=sys.stderr)
    place, ceilings, not_captured, stopped = torch.cuda.get_device_name(), measure(), None, False
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        budget = BUDGET - time.monotonic() + started
        for row in time_cases(cases, ceilings, torch.device("cuda"), budget_seconds=budget):
            rows.append(row)
            took = row.fault or f"{row.milliseconds:.3f} ms, {row.of_floor:.0%} of the floor"
            print(f"{row.kernel}, {row.shape}, {row.direction}: {took}", file=sys.stderr)
        if any(case.kernel == "moe layer" for case in cases):
            not_captured = capture_fault(layer_case(SHAPES[-1]))
    except KeyboardInterrupt:  # what was measured until then is not lost
        stopped = True
    if as_json:
        print(json.dumps({"device": place, **ceilings._asdict(), "not_captured": not_captured, "stopped": stopped,
                          "rows": [row.as_dict() for row in rows]}))
    else:
        print(f"{place}: {ceilings.flops_per_second / 1e12:.0f} TFLOP/s of a product, "
              f"{ceilings.bytes_per_second / 1e12:.2f} TB/s of a copy\n\n{table.timed_text(rows)}")
    _complain([*([not_captured] if not_captured else []), *(["upmix: stopped before the end"] if stopped else [])])
    failed = any(row.fault and not row.fault.startswith("not measured") for row in rows)
    return 1 if failed or not_captured or stopped else 0


def _complain(found: list[str]) -> int:
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


def _refuse(message: str) -> int:
    print(f"upmix: {message}", file=sys.stderr)
    return 2
