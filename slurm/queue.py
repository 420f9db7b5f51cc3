"""What SLURM says of jobs: squeue, which keeps those that ended for some minutes, then sacct where it answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from framework.errors import UserError
from slurm.host import Host

COLUMNS = {"JobArrayID": 40, "State": 30, "RestartCnt": 12, "TimeUsed": 20, "TimeLimit": 20, "NodeList": 100,
           "Reason": 300}
"""What squeue is asked for, and the width of each."""
ACTIVE = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING",
          "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED"}


@dataclass(frozen=True)
class JobState:
    """A job, or a task of an array. state: SLURM's word. restarts: None where SLURM did not say. reason: why it waits
    or how it ended. elapsed, limit: times as SLURM writes them.
    """

    state: str
    restarts: int | None = None
    reason: str = ""
    elapsed: str = ""
    limit: str = ""
    nodes: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it may still run: waits, runs, or is about to."""
        return self.state in ACTIVE


class NoController(UserError):
    """No SLURM answers here. reason: what its command said."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"no SLURM answers: {reason}; allowed: a machine where SLURM's commands work, or --remote")


def states(host: Host, ids: Iterable[str]) -> dict[str, JobState]:
    """What is known of each id (`12`, or `12_3` for a task of an array); ids that SLURM has forgotten are left out.

    Raises NoController where squeue does not answer.
    """
    wanted = set(ids)
    found = {job: state for job, state in queued(host).items() if job in wanted}
    if missing := sorted(wanted - found.keys()):
        found |= {job: state for job, state in _ended(host, missing).items() if job in wanted}
    return found


def queued(host: Host) -> dict[str, JobState]:
    """Jobs of the queue, arrays task by task, those that ended a moment ago included. Raises NoController."""
    widths = ",".join(f"{column}:{width}" for column, width in COLUMNS.items())
    answer = host.run(["squeue", "--noheader", "--array", "--states=all", "--me", f"--Format={widths}"])
    if answer.code:
        raise NoController(first_line(answer.error) or f"squeue ended with {answer.code}")
    return dict(_row(line) for line in answer.output.splitlines() if line.strip())


def first_line(text: str) -> str:
    """Of what a program said."""
    return text.partition("\n")[0]


def _row(line: str) -> tuple[str, JobState]:
    cells, start = [], 0
    for width in COLUMNS.values():
        cells.append(line[start : start + width].strip())
        start += width
    job, state, restarts, elapsed, limit, nodes, reason = cells
    reason = "" if reason in ("None", "(null)") else reason
    return job, JobState(state, int(restarts) if restarts.isdigit() else None, reason, elapsed, limit, nodes)


def _ended(host: Host, ids: list[str]) -> dict[str, JobState]:
    """From sacct, which a cluster need not have: then nothing."""
    jobs = ",".join(sorted({job.partition("_")[0] for job in ids}))
    answer = host.run(["sacct", "--noheader", "--parsable2", "--allocations", "--jobs", jobs,
                       "--format=JobID,State,ExitCode,Elapsed,Timelimit"])
    if answer.code:
        return {}
    found = {}
    for line in answer.output.splitlines():
        job, state, code, elapsed, limit = line.split("|")
        state = re.split(r"[ +]", state)[0]  # "CANCELLED by 1000"
        found[job] = JobState(state, None, "" if code == "0:0" else f"exit code {code}", elapsed, limit)
    return found
