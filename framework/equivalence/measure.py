"""Running a recipe's layout through the trainer, and what its steps did to every parameter."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from framework.equivalence.random_tokens import RandomData, RandomTokens
from framework.errors import UserError
from framework.parametrization.roles import declarations
from framework.training.budget import make_budget
from framework.training.engines import Update
from framework.training.preconditions import mesh_sizes
from framework.training.setup import build_model, build_optimizer
from framework.training.signals import StopRequest
from framework.training.trainer import StepResult, Trainer
from parallel import Mesh

if TYPE_CHECKING:
    from framework.recipe import Loaded

WRAPPER = "_checkpoint_wrapped_module."


@dataclass(frozen=True)
class Measured:
    """What the steps of a layout gave; of one rank, what its pipeline stage holds.

    losses: nats a token, by step; that of step n is before the n-th update. gradients, updates: of the first step, by
    parameter's name, whole arrays, gradients before clipping. stacked: parameters whose dim 0 enumerates experts.
    tokens_per_expert: rows routed to each expert in the first step, by layer.
    """

    losses: tuple[float, ...]
    gradients: dict[str, np.ndarray]
    updates: dict[str, np.ndarray]
    stacked: frozenset[str]
    tokens_per_expert: dict[str, list[float]]


@dataclass(frozen=True)
class Refused:
    """A layout that this recipe cannot take; why, in one line."""

    reason: str


def measure(loaded: Loaded, dtype: str) -> Measured | Refused | None:
    """Train a shrunk recipe for its few steps, on random tokens, as a rank of its layout. Collective over the world.

    dtype: float32 or float64, of weights and everything that is computed. None on ranks whose stage another rank tells
    of.
    """
    # It warns of full_tensor on weights sharded twice, once a rank and shape.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    try:
        trainer = _make_trainer(loaded, getattr(torch, dtype))
    except UserError as error:
        return Refused(str(error))
    start = whole_tensors(trainer.model, trainer.engine.weight)
    first, *later = (trainer.step(step, StopRequest()) for step in range(1, trainer.budget.num_steps + 1))
    if trainer.mesh.stage.get_local_rank() != 0:
        return None
    return Measured(
        losses=tuple(result.loss for result in (first, *later)),
        gradients=trainer.gradients,
        updates={name: trainer.weights[name] - weight for name, weight in start.items()},
        stacked=frozenset(plain(name) for name, _, _, declared in declarations(trainer.model) if declared.stacked),
        tokens_per_expert={layer: counts_E.tolist() for layer, counts_E in first.experts.tokens_per_expert_E.items()},
    )


class ObservedTrainer(Trainer):
    """Takes the same steps, and keeps the whole gradients and weights of the first."""

    gradients: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]

    def step(self, step: int, request: StopRequest) -> StepResult:
        result = super().step(step, request)
        assert not result.skipped, f"loss or gradient of step {step} is not finite"
        if step == 1:
            self.weights = whole_tensors(self.model, self.engine.weight)
        return result

    def _update(self, loss_is_finite: Tensor) -> Update:
        """Clipping is the first thing that an update does to gradients."""
        if not hasattr(self, "gradients"):
            self.gradients = whole_tensors(self.model, self.engine.gradient)
        return super()._update(loss_is_finite)


def whole_tensors(model: nn.Module, choose) -> dict[str, np.ndarray]:
    """Whole copies of what `choose` gives for each parameter of a model, by name; zeros where it gives None.

    Collective over the ranks that hold the parameters.
    """
    arrays = {}
    for name, parameter in model.named_parameters():
        chosen = choose(parameter)
        if chosen is None:
            arrays[plain(name)] = np.zeros(tuple(parameter.shape))
        else:
            whole = chosen.detach().full_tensor() if isinstance(chosen, DTensor) else chosen.detach()
            arrays[plain(name)] = whole.cpu().numpy().copy()
    return arrays


def plain(name: str) -> str:
    """A parameter's name without the wrappers of recomputation."""
    return name.replace(WRAPPER, "")


def _make_trainer(loaded: Loaded, dtype: torch.dtype) -> ObservedTrainer:
    recipe = loaded.recipe
    mesh = Mesh(mesh_sizes(recipe.parallel), "cpu")
    model = build_model(loaded, mesh, torch.device("cpu"), computed_in=dtype)
    data = RandomData(RandomTokens(recipe.data.seq_len, recipe.model.vocab_size, recipe.training.seed))
    budget = make_budget(recipe.data, recipe.training)
    return ObservedTrainer(recipe, budget, mesh, model, build_optimizer(loaded, model), data)
