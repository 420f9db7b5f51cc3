#!/usr/bin/env python3
"""Stands in for the Python of a job: trains nothing, but counts steps, saves and stops as `upmix train` does.

Rank 0 writes, `started_N` in the run folder first, N the restarts before it. A step takes $STEP_SECONDS. Every call
leaves its arguments in $CALLS, one JSON list a line.
$FAILS: exit code of every start, at once.
"""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

asked = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: asked.append(number))

arguments = sys.argv[1:]
leads = os.environ.get("SLURM_PROCID", "0") == "0"
if leads and "CALLS" in os.environ:
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps([arguments, os.getcwd()]) + "\n")
if "FAILS" in os.environ:
    sys.exit(int(os.environ["FAILS"]))
if arguments[:3] != ["-m", "framework.cli", "train"]:
    sys.exit(0)

options = dict(zip(arguments[4:], arguments[5:], strict=False))
folder = Path(options["--runs-dir"]) / options["--name"]
slide = options.get("--slide", "none")
if slide != "none":
    folder = folder.with_name(f"{folder.name}-slide-{slide}")
steps = int(slide) if slide != "none" else int(re.search(r"\n  steps: (\d+)", Path(arguments[3]).read_text())[1])
checkpoints = folder / "checkpoints"
step = max((int(path.name[5:]) for path in checkpoints.glob("step_*")), default=0)
if leads:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(arguments[3], folder / "recipe.yaml")
    (folder / f"started_{os.environ.get('SLURM_RESTART_COUNT', 0)}").touch()
while step < steps and not asked:
    time.sleep(float(os.environ.get("STEP_SECONDS", "0.02")))
    step += 1
if leads:
    (checkpoints / f"step_{step}").mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "a") as file:
        row = {"kind": "train", "step": step, "loss": 1.5, "tokens": 64 * step, "tokens_per_second": 640.0}
        file.write(json.dumps(row) + "\n")
    if step == steps:
        (folder / "DONE").write_text(f"{step}\n")
sys.exit(0 if step == steps else 128 + asked[0])
