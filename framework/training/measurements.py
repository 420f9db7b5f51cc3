"""What is measured on the model between steps: the validation loss, and downstream tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch.distributed as dist

from framework.tasks.collective import Team
from framework.tasks.continuation import by_forwards
from framework.tasks.results import figures
from framework.tasks.scoring import Scorer
from framework.tasks.task_model import TaskModel
from framework.training.evaluation import evaluate, reshard
from framework.training.rows import eval_row, tasks_row
from framework.training.shares import forward_size
from parallel.collectives import all_sum

if TYPE_CHECKING:
    from framework.tasks.harness import TaskSet
    from framework.training.peers import Peers
    from framework.training.trainer import Trainer


class Measurement(Protocol):
    """kind: of its row in metrics. every: steps between two of them; None: only after the last step."""

    kind: str
    every: int | None

    def measure(self, step: int, goes_on: Callable[[], bool]) -> dict[str, Any] | None:
        """The row, on rank 0 at least. Collective over all ranks.

        goes_on: asked after every forward, by all ranks after the same ones; where it says no, the result is None.
        """


def rows_of_forward(trainer: Trainer) -> int:
    """Sequences that a data-parallel rank evaluates at once: as many as a training forward has on each rank of pp."""
    return trainer.mesh.sizes.pp * forward_size(trainer.recipe.data, trainer.mesh.batch.size())


class ValidationLoss:
    """Over the whole validation stream."""

    kind = "eval"

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.every = trainer, trainer.recipe.training.eval_every

    def measure(self, step: int, goes_on: Callable[[], bool]) -> dict[str, Any] | None:
        """As `Measurement` has it."""
        trainer, batch, sizes = self.trainer, self.trainer.mesh.batch, self.trainer.mesh.sizes
        measured = evaluate(
            trainer.model, trainer.data.validation, rows_of_forward(trainer), trainer.recipe.data.isolate_documents,
            trainer.device, batch.get_local_rank(), batch.size(),
            # All ranks of tp have the same cross entropy.
            sum_over_ranks=lambda nats: all_sum(nats, dist.group.WORLD) / sizes.tp,
            goes_on=goes_on, nats_of=trainer.pipeline and trainer.pipeline.evaluate,
        )
        return None if measured is None else eval_row(step, measured)


class TaskFigures:
    """Of the recipe's downstream tasks, which rank 0 has (`tasks`; None elsewhere) and asks the others about."""

    kind = "tasks"

    def __init__(self, trainer: Trainer, peers: Peers, tasks: TaskSet | None) -> None:
        self.trainer, self.peers, self.tasks = trainer, peers, tasks
        self.every = trainer.recipe.tasks.every

    def measure(self, step: int, goes_on: Callable[[], bool]) -> dict[str, Any] | None:
        """As `Measurement` has it; the row is None on other ranks than 0."""
        trainer, recipe = self.trainer, self.trainer.recipe
        team = Team(Scorer(
            trainer.model, recipe.data.seq_len, rows_of_forward(trainer), trainer.device, trainer.mesh.sizes,
            trainer.mesh.batch.get_local_rank(), trainer.pipeline and trainer.pipeline.evaluate, goes_on,
        ), self.peers.broadcast)
        results = None
        if self.peers.leads:
            model = TaskModel(team, trainer.data.tokenizer, recipe.data.seq_len, by_forwards(team))
            results = team.lead(lambda: self.tasks.run(model, recipe.tasks.limit))
        else:
            team.follow()
        reshard(trainer.model)
        return None if results is None else tasks_row(step, figures(results))


def measurements(trainer: Trainer, peers: Peers, tasks: TaskSet | None) -> list[Measurement]:
    """What the trainer's recipe asks for, in the order in which it is measured."""
    found: list[Measurement] = []
    if trainer.data.validation.num_windows > 0:
        found.append(ValidationLoss(trainer))
    if trainer.recipe.tasks.names:
        found.append(TaskFigures(trainer, peers, tasks))
    return found
