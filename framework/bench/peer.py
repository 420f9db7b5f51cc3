"""Another framework in our place: the recipe's batches, AdamW and clipping around a model of theirs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from framework.bench.memory import forget_peak, peak_bytes
from framework.bench.peak import seconds_of
from framework.training.budget import make_budget
from framework.training.peers import Peers
from framework.training.setup import open_data_together
from framework.training.shares import micro_batches
from framework.training.transfer import to_device

if TYPE_CHECKING:
    from framework.recipe import Loaded

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a model, tokens and targets (int64 [B, S]) to the mean cross entropy."""


NEUTRAL = {"load_balance_weight": 0.0, "z_loss_weight": 0.0, "capacity_factor": None, "selection_bias_rate": 0.0}
"""Fields of experts that change training and not the trained model: the tables do not look at them."""


class Peer:
    """A model that trains as plain PyTorch does, on one device: fused AdamW, clipping, autocast below float32."""

    def __init__(self, loaded: Loaded, model: nn.Module, loss: Loss, package: str, device: torch.device) -> None:
        self.recipe, self.device, self.package, self.loss = loaded.recipe, device, package, loss
        self.model = model.to(device).train()
        self.data = open_data_together(self.recipe, Peers()).train
        self.budget = make_budget(self.recipe.data, self.recipe.training)
        optim = self.recipe.optim
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=optim.lr, betas=tuple(optim.betas),
                                           eps=optim.eps, weight_decay=optim.weight_decay, fused=True)
        self._done = self._tokens = 0

    def warm_up(self, num_steps: int) -> dict[str, object]:
        """Take steps that do not count; `loss`: of the first."""
        losses = [self.step() for _ in range(num_steps)]
        forget_peak(self.device)
        return {"loss": losses[0].item()}

    def round(self, num_steps: int) -> dict[str, object]:
        """Take steps; `seconds` and `tokens` in all."""
        before = self._tokens
        seconds = seconds_of(lambda: [self.step() for _ in range(num_steps)], self.device)
        return {"seconds": seconds, "tokens": self._tokens - before}

    def facts(self) -> dict[str, object]:
        """What it is, and the most memory that it took since it was warm."""
        return {"model": type(self.model).__name__, "package": f"{self.package} {version(self.package)}",
                "peak_memory_bytes": peak_bytes(self.device)}

    def step(self) -> Tensor:
        """The next step of the recipe, which starts over after its last one; returns the loss."""
        step = self._done % self.budget.num_steps + 1
        self._done += 1
        first, count = self.budget.samples_before(step), self.budget.batch_size(step)
        self._tokens += count * self.recipe.data.seq_len
        losses = []
        for samples in micro_batches(first, count, self.recipe.data.micro_batch_size, 0, 1):
            tokens_BS = to_device(self.data.batch(*samples), self.device)
            with self._precision():
                mean = self.loss(self.model, tokens_BS[:, :-1].contiguous(), tokens_BS[:, 1:].contiguous())
            loss = mean * (samples[1] / count)
            loss.backward()
            losses.append(loss.detach())
        if self.recipe.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sum(losses)

    def _precision(self):
        dtype = getattr(torch, self.recipe.training.dtype)
        return nullcontext() if dtype is torch.float32 else torch.autocast(self.device.type, dtype)


def left_out(loaded: Loaded) -> list[str]:
    """What of a recipe's training a peer's steps do not have, a few words each."""
    recipe = loaded.recipe
    found = [f"{name} {getattr(sublayer.settings, name)}" for sublayer in loaded.architecture.sublayers()
             if sublayer.kind == "moe" for name, value in NEUTRAL.items() if getattr(sublayer.settings, name) != value]
    found += ["isolated documents"] if recipe.data.isolate_documents else []
    found += [f"recompute {recipe.training.recompute}"] if recipe.training.recompute != "none" else []
    return list(dict.fromkeys(found))
