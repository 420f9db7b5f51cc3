"""A checkpoint of llm-random or of nano as a run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from framework.convert.imported import write_run
from framework.convert.our_weights import Given, OurWeights
from framework.convert.research import llm_random, nano
from framework.convert.research.layout import Layout, Parts
from framework.convert.research.recipe import read_recipe
from framework.convert.research.rotary import BUFFERS, require_same_positions
from framework.convert.research.weights_file import WeightsFile
from framework.convert.research.weights_folder import WeightsFolder
from framework.data import load_tokenizer
from framework.data.open import TRAINED
from framework.errors import UserError
from framework.recipe import Loaded
from framework.recipe.errors import RecipeError
from framework.surgery.new_run import refuse_existing

if TYPE_CHECKING:
    from framework.data import Tokenizer

SHARDED = "app.model."
"""What nano's sharded checkpoints put before the names of a model."""


def from_llm_random(file: Path, path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Make the run folder `path` of a checkpoint of llm-random, STEP.pt: a recipe, and a checkpoint of step 0.

    overrides: of the recipe, as `model.attention.num_heads=8`; what weights do not tell must be among them. Returns
    the report. Raises UserError for what is missing there, for what no model of ours has, for a tensor that is
    missing, unexpected or of another shape, and for damaged files; nothing is left then.
    """
    refuse_existing(path)
    return _make(llm_random.LAYOUT, WeightsFile(file), path, overrides)


def from_nano(source: Path, path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """As `from_llm_random`, of nano: one file, or the folder step_N of a sharded checkpoint."""
    refuse_existing(path)
    return _make(nano.LAYOUT, WeightsFolder(source, SHARDED) if source.is_dir() else WeightsFile(source), path,
                 overrides)


def _make(layout: Layout, given: Given, path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        parts = layout.find(given.shapes)
        tied = _tied(given, parts)
        loaded = read_recipe(layout, given, parts, tied, overrides)
        require_same_positions(given, parts, loaded.architecture)
        found = layout.pieces(parts, given.shapes, loaded.architecture)
    except RecipeError:
        raise
    except UserError as error:
        raise error if str(error).startswith(str(given.path)) else UserError(f"{given.path}: {error}") from None
    again = (*BUFFERS, parts.unembedding) if tied else BUFFERS
    weights = OurWeights(given, found, loaded.architecture, "the recipe", again)
    tokenizer = _tokenizer(loaded)
    has_data = write_run(path, loaded, weights, loaded.recipe.data, tokenizer)
    return {
        "source": str(given.path), "run": str(path), "step": 0, "layout": layout.name,
        "num_tensors": len(weights.shapes), "pattern": loaded.recipe.model.pattern,
        "tokenizer": None if tokenizer is None else tokenizer.path.name, "has_data": has_data,
    }


def _tied(given: Given, parts: Parts) -> bool:
    """Whether the matrix at the end is that of the beginning, bit for bit, as a file of tied ones has it twice."""
    ends = (parts.embedding, parts.unembedding)
    return all(name in given.shapes for name in ends) and len({_digest(given, name) for name in ends}) == 1


def _digest(given: Given, name: str) -> bytes:
    tensor = given.tensor(name).contiguous()
    return hashlib.sha256(tensor.view(torch.uint8).numpy()).digest()


def _tokenizer(loaded: Loaded) -> Tokenizer | None:
    """The tokenizer that an override names."""
    named = loaded.recipe.data.tokenizer
    return None if named == TRAINED else load_tokenizer(named)
