"""What is submitted: trainings and other commands, jobs of them, and a submission of jobs that wait for each other."""

from __future__ import annotations

from dataclasses import dataclass

from slurm.shape import Shape


@dataclass(frozen=True)
class Training:
    """A run to train. run: the name that `upmix train` gets. recipe: resolved, as YAML text. num_steps: of the run that
    is trained. slide: length of the one slide to train, "none" for the trunk alone, or None: the recipe has none.
    """

    run: str
    recipe: str
    num_steps: int
    slide: str | None = None

    @property
    def folder(self) -> str:
        """Of the run, under the runs folder."""
        return self.run if self.slide in (None, "none") else f"{self.run}-slide-{self.slide}"


@dataclass(frozen=True)
class Command:
    """Any other `upmix ARGUMENTS`."""

    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """What one call of sbatch submits: a command, a training, or an array of trainings of one shape.

    name: unique in its submission. runs_dir: of the trainings, below the submission's runs folder. after: names of the
    jobs that must have ended well before it starts.
    """

    name: str
    work: Command | tuple[Training, ...]
    shape: Shape
    runs_dir: str = ""
    after: tuple[str, ...] = ()

    @property
    def trainings(self) -> tuple[Training, ...]:
        return () if isinstance(self.work, Command) else self.work

    @property
    def is_array(self) -> bool:
        return len(self.trainings) > 1


@dataclass(frozen=True)
class Submission:
    """Jobs, each behind those that it waits for.

    name: of the folder under the runs folder whose `job/` holds scripts, recipes, logs and the record. finished: run
    folders that are left out, as nothing is left to train.
    """

    name: str
    jobs: tuple[Job, ...]
    finished: tuple[str, ...] = ()
