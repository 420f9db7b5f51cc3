"""What the framework costs: the trainer's step against a bare loop over the same blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call

from framework.bench.peak import seconds_of
from framework.model import Context, build_language_model
from framework.optim import set_learning_rates
from framework.parametrization import widths
from framework.training.setup import build_optimizer
from framework.training.shares import micro_batches
from framework.training.trainer import Trainer

if TYPE_CHECKING:
    from framework.model import LanguageModel
    from framework.recipe import Loaded


class BareLoop:
    """Forward, backward, clipping and fused AdamW of the recipe's model as plain tensors, on batches that lie ready.

    It has nothing of training but these: no mesh, no sharded tensors, no data, no statistics, no check of gradients, no
    number that leaves the device. Weights begin as the trainer's are now. For one rank, and PyTorch's own engine.
    """

    def __init__(self, loaded: Loaded, trainer: Trainer) -> None:
        self.recipe, self.trainer, self.device = loaded.recipe, trainer, trainer.device
        self.dtype = getattr(torch, self.recipe.training.dtype)
        self.model = copied(loaded, trainer.model).to(self.device).train()
        self.optimizer = build_optimizer(loaded, self.model)
        self.narrow = [name for name, _ in self.model.named_parameters() if not _stays_float32(self.model, name)]

    def batches(self, step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Tokens and targets of each forward of a step (1..num_steps), on the device."""
        budget, data = self.trainer.budget, self.recipe.data
        first, count = budget.samples_before(step), budget.batch_size(step)
        found = []
        for samples in micro_batches(first, count, data.micro_batch_size, 0, 1):
            tokens_BS = torch.from_numpy(self.trainer.data.train.batch(*samples)).to(self.device)
            found.append((tokens_BS[:, :-1].contiguous(), tokens_BS[:, 1:].contiguous()))
        return found

    def step(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Train on what `batches` gave."""
        context = Context(num_sequences=sum(len(tokens_BS) for tokens_BS, _ in batches))
        num_tokens = sum(tokens_BS.numel() for tokens_BS, _ in batches)
        for tokens_BS, targets_BS in batches:
            (self._forward(tokens_BS, context, targets_BS) / num_tokens).backward()
        if self.recipe.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _forward(self, *batch: Any) -> torch.Tensor:
        if self.dtype is torch.float32:
            return self.model(*batch)
        cast = {name: self.model.get_parameter(name).to(self.dtype) for name in self.narrow}
        return functional_call(self.model, cast, batch)


def overhead_of_rounds(
    loaded: Loaded, trainer: Trainer, step: Callable[[int], object], num_rounds: int, num_steps: int
) -> list[float]:
    """Time of the trainer's steps over the bare loop's, less one, for each of `num_rounds` pairs of rounds.

    step: takes the trainer's step of that number. Both take the same steps of the recipe in turn, after one each that
    does not count; the second of a pair comes first in the next.
    """
    bare, ratios = BareLoop(loaded, trainer), []
    last = trainer.budget.num_steps
    for number in range(num_rounds + 1):
        steps = [(number * num_steps + each) % last + 1 for each in range(num_steps if number else 1)]
        batches = [bare.batches(each) for each in steps]
        set_learning_rates(bare.optimizer, loaded.recipe.optim, steps[0], last)
        turns = {
            "trainer": lambda steps=steps: [step(each) for each in steps],
            "bare": lambda batches=batches: [bare.step(each) for each in batches],
        }
        order = sorted(turns, reverse=number % 2 == 0)
        seconds = {name: seconds_of(turns[name], trainer.device) for name in order}
        if number:
            ratios.append(seconds["trainer"] / seconds["bare"] - 1)
    return ratios


def copied(loaded: Loaded, model: nn.Module) -> LanguageModel:
    """The recipe's model as plain float32 tensors on the CPU or GPU, with the weights of a sharded one on one rank."""
    found = build_language_model(loaded.architecture, widths(loaded.recipe, loaded.architecture))
    found.load_state_dict({name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                           for name, tensor in model.state_dict().items()})
    return found


def _stays_float32(model: nn.Module, name: str) -> bool:
    """Whether a module that holds a parameter, or one around it, keeps its weights in float32."""
    parts = name.split(".")[:-1]
    return any(getattr(model.get_submodule(".".join(parts[:end])), "keep_float32", False)
               for end in range(1, len(parts) + 1))
