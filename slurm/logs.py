"""What jobs said, as far as it has not been read yet."""

from __future__ import annotations

import os

from framework.errors import UserError
from slurm.host import Host
from slurm.queue import NoController, states
from slurm.record import RecordedTask, the_record, the_tasks


class Log:
    """The log of one task: all starts of all its links, one behind the other.

    only: the name of the task; None: the first that said anything, or that may yet. Raises UserError where there is no
    such submission or task, or nothing was said and nothing will be.
    """

    def __init__(self, host: Host, runs: str, name: str, only: str | None) -> None:
        self.host = host
        record = the_record(host, runs, name)
        tasks = the_tasks(record, only)
        self._folder = f"{record.folder}/log"
        self._task = next((task for task in tasks if self._said(task)), tasks[0])
        self._read = [0] * len(self._task.ids)
        if not self._said(self._task) and self.is_over():
            raise UserError(f"{name}: {self._task.name} has said nothing, and no job of it waits or runs; allowed: "
                            "another task (`upmix status` lists them)")

    def read(self) -> list[bytes]:
        """What is new in each link's log."""
        found = []
        for link, job in enumerate(self._task.ids):
            answer = self.host.run(["tail", "-c", f"+{self._read[link] + 1}", "--", self._path(job)])
            text = os.fsencode(answer.output) if answer.code == 0 else b""
            self._read[link] += len(text)
            found.append(text)
        return found

    def is_over(self) -> bool:
        """Whether no link waits or runs any more, or nobody can say."""
        try:
            known = states(self.host, self._task.ids)
        except NoController:
            return True
        return not any(state.is_active for state in known.values())

    def _said(self, task: RecordedTask) -> bool:
        return any(self.host.tails([self._path(job) for job in task.ids], 1))

    def _path(self, job: str) -> str:
        return f"{self._folder}/{job}.out"
