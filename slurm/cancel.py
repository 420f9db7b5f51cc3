"""Cancelling what was submitted."""

from __future__ import annotations

from framework.errors import UserError
from slurm.host import Host
from slurm.record import the_record, the_tasks
from slurm.status import active_ids


def cancel(host: Host, runs: str, name: str, only: str | None = None) -> list[str]:
    """Cancel what waits or runs of a submission; returns the ids. A run that is cancelled saves a checkpoint first.

    Raises UserError where nothing has that name, or SLURM does not answer.
    """
    record = the_record(host, runs, name)
    wanted = {job for task in the_tasks(record, only) for job in task.ids}
    active = [job for job in active_ids(host, record) if job in wanted]
    if active:
        answer = host.run(["scancel", *active])
        if answer.code:
            raise UserError(f"scancel: {answer.error}; allowed: jobs of your own")
    return active
