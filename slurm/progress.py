"""How far a run has come, from the end of its metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from slurm.host import Host


@dataclass(frozen=True)
class Progress:
    """step: the last one that was reported; 0 before the first. loss: its training loss, nats a token. seconds_left:
    until num_steps, by the last steps' speed; None where it is not known. finished: DONE is there and says so.
    """

    step: int
    num_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    finished: bool


def progress(host: Host, folders: Sequence[str], num_steps: Sequence[int | None]) -> list[Progress]:
    """Of each run folder. num_steps: how long each shall be; None: not known."""
    texts = host.tails([f"{folder}/{name}" for folder in folders for name in ("metrics.jsonl", "DONE")])
    pairs = zip(texts[::2], texts[1::2], num_steps, strict=True)
    return [_of(metrics or "", done or "", steps) for metrics, done, steps in pairs]


def _of(metrics: str, done: str, num_steps: int | None) -> Progress:
    rows = [row for line in metrics.splitlines() if (row := _row(line))]
    last = rows[-1] if rows else {}
    step = last.get("step", 0)
    finished = done.strip().isdigit() and int(done) >= (num_steps or 0)
    speed = last.get("tokens_per_second")
    left = None
    if len(rows) > 1 and speed and num_steps is not None:
        a_step = (last["tokens"] - rows[-2]["tokens"]) / max(1, step - rows[-2]["step"])
        left = max(0, num_steps - step) * a_step / speed
    return Progress(step, num_steps, last.get("loss"), speed, 0.0 if finished else left, finished)


def _row(line: str) -> dict | None:
    """A training step's row; None for another, and for a line that the tail cut or that is being written."""
    try:
        row = json.loads(line)
        return row if row["kind"] == "train" and isinstance(row["step"], int) else None
    except (ValueError, KeyError, TypeError):
        return None
