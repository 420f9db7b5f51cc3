"""The state of submissions and runs: what SLURM says, joined with what run folders say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from framework.errors import UserError
from slurm.host import Host
from slurm.progress import Progress, progress
from slurm.queue import JobState, NoController, states
from slurm.record import Record, RecordedTask, read_records

UNKNOWN = JobState("UNKNOWN")


@dataclass(frozen=True)
class Row:
    """A task of a submission, or a run that was never submitted.

    submission: its name; "" for a run without one. name: of the run, or of the job where it trains none. job: SLURM's
    id of the link that runs, or is the next to; "" for none. state: SLURM's word, `FINISHED` once nothing is left to
    train, `LOCAL` for a run without a submission. restarts: times that SLURM started it again, None where it did not
    say.
    """

    submission: str
    name: str
    job: str
    state: str
    reason: str
    elapsed: str
    limit: str
    restarts: int | None
    progress: Progress | None

    @property
    def is_active(self) -> bool:
        return JobState(self.state).is_active


@dataclass(frozen=True)
class Status:
    """rows: by submission, oldest first. silence: why SLURM did not answer, or None: it did."""

    rows: list[Row]
    silence: str | None


def status(host: Host, runs: str, name: str | None = None) -> Status:
    """All that was submitted to run in a runs folder and the runs beside it, or the one of a name.

    Raises UserError where no submission and no run has that name.
    """
    records = read_records(host, runs, name)
    alone = _runs_alone(host, runs, name, records)
    if name is not None and not records and not alone:
        raise UserError(f"{runs}/{name}: no submission and no run; allowed: a name that `upmix status` lists")
    silence = None
    try:
        known = states(host, [job for record in records for job in _ids(record)]) if records else {}
    except NoController as error:
        known, silence = {}, error.reason
    rows = [_task_row(record, task, known) for record in records for job in record.jobs for task in job.tasks()]
    rows += [Row("", run, "", "LOCAL", "", "", "", None, None) for run in alone]
    return Status(_with_progress(host, runs, rows, records), silence)


def active_ids(host: Host, record: Record) -> list[str]:
    """SLURM's ids of a submission's tasks that wait or run. Raises NoController."""
    wanted = _ids(record)
    known = states(host, wanted)
    return [job for job in wanted if job in known and known[job].is_active]


def _ids(record: Record) -> list[str]:
    return [job for each in record.jobs for task in each.tasks() for job in task.ids]


def _runs_alone(host: Host, runs: str, name: str | None, records: Sequence[Record]) -> list[str]:
    """Runs that stand in the runs folder and belong to no submission."""
    owned = {run.folder for record in records for job in record.jobs for run in job.runs}
    pattern = f"{runs}/{name or '*'}/recipe.yaml"
    paths = host.find(pattern) if name is None else [pattern] if host.tails([pattern], 1) != [None] else []
    return [run for path in paths if (run := PurePosixPath(path).parent.name) not in owned]


def _task_row(record: Record, task: RecordedTask, known: Mapping[str, JobState]) -> Row:
    """Of a chain's links the first that is active, else the last one that SLURM knows of."""
    links = [(job, known[job]) for job in task.ids if job in known]
    job, state = next((link for link in links if link[1].is_active), links[-1] if links else (task.ids[-1], UNKNOWN))
    return Row(record.name, task.name, job, state.state, state.reason, state.elapsed, state.limit, state.restarts, None)


def _with_progress(host: Host, runs: str, rows: Sequence[Row], records: Sequence[Record]) -> list[Row]:
    steps = {(record.name, run.folder): run.num_steps for record in records for job in record.jobs for run in job.runs}
    trained = [row for row in rows if (row.submission, row.name) in steps or row.state == "LOCAL"]
    lengths = [steps.get((row.submission, row.name)) for row in trained]
    of = dict(zip(map(id, trained), progress(host, [f"{runs}/{row.name}" for row in trained], lengths), strict=True))
    done = [replace(row, progress=of.get(id(row))) for row in rows]
    return [replace(row, state="FINISHED") if row.progress and row.progress.finished and not row.is_active else row
            for row in done]
