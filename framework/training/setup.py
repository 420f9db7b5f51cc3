"""The parts of a run: data and model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from framework.data import open_data
from framework.errors import UserError
from framework.model import LanguageModel, build_language_model
from framework.parallelize import parallelize
from framework.parametrization import initialize
from framework.training.peers import Peers
from parallel import Mesh

if TYPE_CHECKING:
    from framework.data import DataSet
    from framework.recipe import Loaded
    from framework.recipe.schema import Recipe


def open_data_together(recipe: Recipe, peers: Peers) -> DataSet:
    """The recipe's data on every rank; where it is not prepared yet, rank 0 does that while the others wait."""

    def opened() -> DataSet:
        return open_data(recipe.data, recipe.model.vocab_size, recipe.training.seed, progress=peers.leads)

    peers.lead(lambda: opened() and None)
    return opened()


def build_model(loaded: Loaded, mesh: Mesh, device: torch.device) -> LanguageModel:
    """The recipe's model, split over the mesh, initialised; no rank ever holds more than its part.

    Raises UserError where the model cannot be split so.
    """
    training = loaded.recipe.training
    with torch.device("meta"):
        model = build_language_model(loaded.architecture)
    try:
        model = parallelize(model, mesh, dtype=getattr(torch, training.dtype), compile=training.compile)
    except ValueError as error:
        raise UserError(f"parallel: {error}") from error
    model.to_empty(device=device)
    initialize(model, loaded.recipe.parametrization.init, training.seed)
    return model
