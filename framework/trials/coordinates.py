"""The coordinate check: how far a model's coordinates move in its first steps, over widths.

Under a right width parametrization they move as far at any width (https://arxiv.org/abs/2203.03466, Appendix D.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from framework.data import open_data
from framework.errors import UserError
from framework.model import Context, LanguageModel, build_language_model
from framework.optim import build_adamw, set_learning_rates
from framework.parametrization import initialize, widths
from framework.trials.observe import outputs, parameters

if TYPE_CHECKING:
    from framework.recipe import Loaded

ALLOWED_SLOPE = 0.1
"""Of log2(mean |x_t - x_0|) over log2(width), in size."""

JUDGED = "change"
Sizes = dict[tuple[str, str], list[float]]
"""By (quantity, role): a size for each step, or one where steps do not matter."""


@dataclass(frozen=True)
class Slope:
    """How one size of one role grows: as width to the power `slope`, nan where it is 0 at some width.

    quantity: initial, mean |x_0| of the role's outputs; change, mean |x_t - x_0| after the last step, the one that is
    judged; update, mean |w_t - w_0| of the role's parameters. sizes: over widths, the geometric mean over seeds.
    """

    role: str
    quantity: str
    slope: float
    sizes: tuple[float, ...]

    @property
    def passes(self) -> bool:
        """Whether the role moves alike at all widths; sizes that are not judged pass."""
        return self.quantity != JUDGED or abs(self.slope) < ALLOWED_SLOPE


def measure(loaded: Loaded, num_steps: int, num_sequences: int, seed: int) -> Sizes:
    """Train a recipe's model for a few steps, on one rank and the CPU, in float32.

    num_sequences: of the one batch that every step trains on and whose coordinates are watched: on other data most of
    an update is noise, which adds up as the root of the width. The learning rate is the recipe's peak from the first
    step on. Raises UserError where the loss is not finite.
    """
    recipe, rules = loaded.recipe, widths(loaded.recipe, loaded.architecture)
    train = open_data(recipe.data, recipe.model.vocab_size, recipe.training.seed).train
    model = build_language_model(loaded.architecture, rules)
    initialize(model, recipe.parametrization.init, seed, rules)
    optim = recipe.optim.model_copy(update={"schedule": "constant", "warmup_steps": 0})
    optimizer = build_adamw(model, optim, rules)
    tokens_BS = torch.from_numpy(train.batch(0, num_sequences))
    start, weights = outputs(model, tokens_BS[:, :-1]), parameters(model)
    sizes: Sizes = {("initial", role): [_size(tensors)] for role, tensors in start.items()}
    for step in range(num_steps):
        set_learning_rates(optimizer, optim, step + 1, num_steps)
        _step(model, optimizer, tokens_BS, recipe.optim.clip_norm)
        for quantity, now, before in (("change", outputs(model, tokens_BS[:, :-1]), start),
                                      ("update", parameters(model), weights)):
            for role, tensors in before.items():
                moved = [x - x_0 for x, x_0 in zip(now[role], tensors, strict=True)]
                sizes.setdefault((quantity, role), []).append(_size(moved))
    return sizes


def measure_widths(
    loaded: Mapping[int, Loaded], num_steps: int, num_sequences: int, seeds: Sequence[int],
    progress: Callable[[], None] = lambda: None,
) -> dict[int, list[Sizes]]:
    """What `measure` gives at each width for each seed. progress: called after each of them."""
    measured: dict[int, list[Sizes]] = {width: [] for width in loaded}
    for width, recipe in loaded.items():
        for seed in seeds:
            measured[width].append(measure(recipe, num_steps, num_sequences, seed))
            progress()
    return measured


def slopes(measured: Mapping[int, Sequence[Sizes]]) -> list[Slope]:
    """The slope of every size over widths, from what `measure` gave at each width for each seed."""
    ordered = sorted(measured)
    rows = []
    for quantity, role in measured[ordered[0]][0]:
        means = tuple(_geometric_mean(sizes[quantity, role][-1] for sizes in measured[width]) for width in ordered)
        fitted = np.polyfit(np.log2(ordered), np.log2(means), 1)[0] if all(means) else math.nan
        rows.append(Slope(role, quantity, float(fitted), means))
    return rows


def _step(model: LanguageModel, optimizer: torch.optim.Optimizer, tokens_BS: Tensor, clip_norm: float | None) -> None:
    model.train()
    count, seq_len = tokens_BS.shape[0], tokens_BS.shape[1] - 1
    loss = model(tokens_BS[:, :-1], Context(num_sequences=count), tokens_BS[:, 1:]) / (count * seq_len)
    if not loss.isfinite():
        raise UserError(f"the loss is not finite at width {model.d_model}; allowed: a lower optim.lr")
    loss.backward()
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _size(tensors: Iterable[Tensor]) -> float:
    """The mean over tensors of mean |x|."""
    return float(np.mean([tensor.abs().mean().item() for tensor in tensors]))


def _geometric_mean(sizes: Iterator[float]) -> float:
    found = list(sizes)
    return math.exp(np.mean(np.log(found))) if all(found) else 0.0
