"""Optimizer steps of a recipe, exactly as training takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from framework.training.budget import make_budget
from framework.training.peers import Peers
from framework.training.preconditions import mesh_sizes
from framework.training.setup import build_model, build_optimizer, open_data_together
from framework.training.signals import StopRequest
from framework.training.trainer import Trainer
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


def training_steps(trainer: Trainer) -> Callable[[], None]:
    """A function that takes the next step; after the recipe's last one it starts over."""
    request = StopRequest()
    done = 0

    def step() -> None:
        nonlocal done
        trainer.step(done % trainer.budget.num_steps + 1, request)
        done += 1

    return step
