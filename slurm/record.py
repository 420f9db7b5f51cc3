"""What was submitted: `RUNS/NAME/job/submission.json`, written after every call of sbatch, so that no job is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

from framework.errors import UserError
from slurm.host import Host

FILE = "submission.json"


@dataclass(frozen=True)
class RecordedRun:
    """A run that a task of a job trains: its folder under the runs folder, and the steps that it shall have."""

    folder: str
    num_steps: int


@dataclass(frozen=True)
class RecordedJob:
    """A job: SLURM's ids of its links, one unless it is a planned chain; no runs where it is another command."""

    name: str
    ids: tuple[str, ...]
    runs: tuple[RecordedRun, ...]

    def tasks(self) -> list[RecordedTask]:
        """The tasks of an array in its order, else the one task."""
        if len(self.runs) < 2:
            return [RecordedTask(self.name, self.ids, self.runs[0] if self.runs else None)]
        return [RecordedTask(self.name, tuple(f"{job}_{index}" for job in self.ids), run)
                for index, run in enumerate(self.runs)]


@dataclass(frozen=True)
class RecordedTask:
    """One task of a job: SLURM's ids of its links, oldest first, and the run that it trains, if it does."""

    job: str
    ids: tuple[str, ...]
    run: RecordedRun | None

    @property
    def name(self) -> str:
        return self.run.folder if self.run else self.job


@dataclass(frozen=True)
class Record:
    """A submission. folder: of its `job/`. time: when it began, ISO 8601. code: the snapshot's name."""

    name: str
    folder: str
    cluster: str
    time: str
    code: str
    jobs: tuple[RecordedJob, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(job for each in self.jobs for job in each.ids)


def write_record(host: Host, record: Record) -> None:
    """Put a record in its folder."""
    values = asdict(record)
    del values["folder"]
    host.write(record.folder, {FILE: json.dumps({"format": 1, **values}, indent=1) + "\n"})


def read_records(host: Host, runs: str, name: str | None = None) -> list[Record]:
    """The records of all submissions in a runs folder, the oldest first; or of the one of a name, if it is there.

    Raises UserError for a record that cannot be read.
    """
    paths = [f"{runs}/{name}/job/{FILE}"] if name is not None else host.find(f"{runs}/*/job/{FILE}")
    texts = host.tails(paths, size=2**26)
    found = [_parse(path, text) for path, text in zip(paths, texts, strict=True) if text is not None]
    return sorted(found, key=lambda record: (record.time, record.name))


def the_record(host: Host, runs: str, name: str) -> Record:
    """The submission of a name. Raises UserError where there is none."""
    records = read_records(host, runs, name)
    if not records:
        raise UserError(f"{runs}/{name}: nothing was submitted under that name; allowed: a name that `upmix status` "
                        "lists")
    return records[0]


def the_tasks(record: Record, only: str | None) -> list[RecordedTask]:
    """The tasks of a submission, or the one of a name. Raises UserError where none has it."""
    tasks = [task for job in record.jobs for task in job.tasks()]
    chosen = [task for task in tasks if only is None or only in (task.name, task.name.rpartition("/")[2])]
    if not chosen:
        some = ", ".join(task.name.rpartition("/")[2] for task in tasks[:5])
        raise UserError(f"{record.name}: has no task {only!r}; allowed: {some}{', ...' if len(tasks) > 5 else ''}")
    return chosen


def _parse(path: str, text: str) -> Record:
    try:
        values = json.loads(text)
        if values.pop("format") != 1:
            raise ValueError("format")
        jobs = tuple(RecordedJob(job["name"], tuple(map(str, job["ids"])), _runs(job["runs"]))
                     for job in values["jobs"])
        return Record(**values | {"jobs": jobs, "folder": str(PurePosixPath(path).parent)})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged; allowed: what `upmix submit` wrote, or no such file") from None


def _runs(values: Sequence[dict]) -> tuple[RecordedRun, ...]:
    return tuple(RecordedRun(str(run["folder"]), int(run["num_steps"])) for run in values)
