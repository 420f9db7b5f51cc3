"""Submitting: what is written where, in which order, and what a submission must not be allowed to do."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from framework.errors import UserError
from slurm.cluster import Cluster
from slurm.host import Host
from slurm.jobs import Job, Submission
from slurm.queue import NoController, first_line, states
from slurm.record import Record, RecordedJob, RecordedRun, read_records, write_record
from slurm.script import Places, job_name, render
from slurm.snapshot import Snapshot, pack


def places_of(workdir: str, runs: str, name: str, code: str) -> Places:
    """Where a submission's things stand, by absolute paths. Raises UserError for a path that sbatch or Python's search
    path would change."""
    for sign, why in (("\\", "sbatch reads it in the names of logs"), (":", "PYTHONPATH is split at it")):
        if sign in runs:
            raise UserError(f"{runs}: holds {sign!r}, and {why}; allowed: a runs folder without it")
    return Places(workdir, runs, f"{runs}/{name}/job", f"{runs}/.code/{code}")


def require_plain_mounts(cluster: Cluster, places: Places) -> None:
    """Raise UserError where a container is to see a folder whose name its list of mounts would split."""
    if cluster.container is not None and any(sign in f"{places.workdir}{places.runs}" for sign in ",:"):
        raise UserError(f"{places.workdir}, {places.runs}: a container's mounts are split at ',' and ':'; allowed: "
                        "folders without them")


def scripts(submission: Submission, cluster: Cluster, places: Places) -> dict[str, str]:
    """The text of every job's script by the name of its file."""
    return {script_name(submission, job): render(job, cluster, places) for job in submission.jobs}


def script_name(submission: Submission, job: Job) -> str:
    """`job.sh`, or with several jobs a number and a name."""
    if len(submission.jobs) == 1:
        return "job.sh"
    return f"{1 + submission.jobs.index(job)}_{job_name(job.name)}.sh"


def test_only(host: Host, texts: Sequence[str]) -> list[str]:
    """What `sbatch --test-only` says of each script: when and where it would start. Raises NoController, and UserError
    for a script that the controller would refuse."""
    if (answer := host.run(["sinfo", "--noheader"])).code:
        raise NoController(first_line(answer.error))
    found = []
    for text in texts:
        answer = host.run(["sbatch", "--test-only"], given=text.encode())
        if answer.code:
            raise UserError(f"sbatch --test-only: {answer.error}; allowed: what the cluster's partitions, accounts and "
                            "nodes can take (--cluster)")
        found.append(answer.error.removeprefix("sbatch: "))
    return found


def submit(
    submission: Submission, cluster: Cluster, cluster_name: str, host: Host, places: Places, snapshot: Snapshot
) -> Record:
    """Write everything a submission needs, submit its jobs, and record their ids after each.

    Raises UserError where a run of it is under way already, where sbatch refuses (jobs of the submission that were
    submitted are cancelled then), and where no SLURM answers.
    """
    with _alone(host, places.job):
        _refuse_active(host, submission, places)
        host.unpack(places.code, pack(snapshot))
        _write(host, submission, cluster, places)
        time = datetime.now().astimezone().isoformat(timespec="seconds")
        record = Record(submission.name, places.job, cluster_name, time, os.path.basename(places.code), ())
        return _submit_all(submission, cluster, host, places, record)


@contextmanager
def _alone(host: Host, folder: str) -> Iterator[None]:
    """One submission of a name at a time on this machine. Over ssh training's own lock alone is left."""
    if host.name:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another `upmix submit` is at work; allowed: one at a time") from None
        yield


def _refuse_active(host: Host, submission: Submission, places: Places) -> None:
    """No two jobs on one run: whoever submitted it, and under whatever name."""
    wanted = {_folder(job, training.folder) for job in submission.jobs for training in job.trainings}
    owners = {job: (record, task.name)
              for record in read_records(host, places.runs)
              for each in record.jobs for task in each.tasks() for job in task.ids
              if record.name == submission.name or (task.run and task.run.folder in wanted)}
    known = states(host, owners) if owners else {}
    for job, state in known.items():
        if state.is_active:
            record, folder = owners[job]
            raise UserError(f"{places.runs}/{folder}: job {job} of the submission {record.name!r} is {state.state}; "
                            f"allowed: a run that no job is on (`upmix cancel {record.name}`)")


def _write(host: Host, submission: Submission, cluster: Cluster, places: Places) -> None:
    files = scripts(submission, cluster, places)
    files |= {f"recipes/{training.run}.yaml": training.recipe for job in submission.jobs for training in job.trainings}
    if cluster.wheels:
        files["requirements.txt"] = "".join(f"{line}\n" for line in _requirements())
    host.write(places.job, files)
    # Starts are counted anew: a new submission is a new try.
    answer = host.run(["sh", "-c", 'rm -rf -- "$1/starts" && mkdir -p -- "$1/starts" "$1/log"', "_", places.job])
    if answer.code:
        raise UserError(f"{places.job}: cannot be written: {answer.error}; allowed: a runs folder that may be written")


def _requirements() -> list[str]:
    """What the code needs, as its own metadata says; extras and tests left out."""
    return [line for line in importlib.metadata.requires("upmix") or [] if "extra ==" not in line]


def _submit_all(submission: Submission, cluster: Cluster, host: Host, places: Places, record: Record) -> Record:
    last: dict[str, str] = {}
    for job in submission.jobs:
        ids: list[str] = []
        for link in range(1, (cluster.links if job.trainings else 1) + 1):
            after = [f"{'aftercorr' if job.is_array else 'afterok'}:{ids[-1]}"] if ids else []
            after += [f"afterok:{last[name]}" for name in job.after] if not ids else []
            try:
                ids.append(_sbatch(job, script_name(submission, job), link, after, host, places))
            except UserError:
                if started := [*record.ids, *ids]:
                    host.run(["scancel", *started])
                raise
        last[job.name] = ids[-1]
        runs = tuple(RecordedRun(_folder(job, training.folder), training.num_steps) for training in job.trainings)
        record = replace(record, jobs=(*record.jobs, RecordedJob(job.name, tuple(ids), runs)))
        write_record(host, record)
    return record


def _sbatch(job: Job, script: str, link: int, after: list[str], host: Host, places: Places) -> str:
    log = f"{places.job}/log/".replace("%", "%%") + ("%A_%a.out" if job.is_array else "%j.out")
    command = ["sbatch", "--parsable", f"--output={log}", *([f"--dependency={','.join(after)}"] if after else []),
               f"{places.job}/{script}", str(link)]
    answer = host.run(command, folder=places.workdir)
    if answer.code == 127:
        raise NoController(answer.error)
    if answer.code:
        raise UserError(f"sbatch: {answer.error}; allowed: what the cluster takes (--dry-run tells without submitting)")
    return answer.output.strip().partition(";")[0]


def _folder(job: Job, run: str) -> str:
    return f"{job.runs_dir}/{run}" if job.runs_dir else run
