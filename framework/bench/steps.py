"""Optimizer steps of a recipe, exactly as training takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from framework.training.budget import make_budget
from framework.training.peers import Peers
from framework.training.preconditions import mesh_sizes
from framework.training.setup import build_model, build_optimizer, open_data_together
from framework.training.signals import StopRequest
from framework.training.trainer import StepResult, Trainer
from parallel import Mesh

if TYPE_CHECKING:
    from framework.recipe import Loaded


def make_trainer(loaded: Loaded, device: torch.device) -> Trainer:
    """A trainer at the start of the recipe. Collective over the ranks of its layout."""
    recipe = loaded.recipe
    data = open_data_together(recipe, Peers())
    mesh = Mesh(mesh_sizes(recipe.parallel), device.type)
    model = build_model(loaded, mesh, device)
    optimizer = build_optimizer(loaded, model)
    return Trainer(recipe, make_budget(recipe.data, recipe.training), mesh, model, optimizer, data)


class TrainingSteps:
    """Takes a trainer's steps one after the other; after the recipe's last one it starts over. done: how many."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._request = StopRequest()
        self.done = 0

    def next(self) -> StepResult:
        """Take the next step."""
        self.done += 1
        return self.numbered((self.done - 1) % self.trainer.budget.num_steps + 1)

    def numbered(self, step: int) -> StepResult:
        """Take a step by its number in the recipe (1..num_steps)."""
        return self.trainer.step(step, self._request)
