"""How evenly experts are used, summed over micro-batches and ranks.

Shapes: E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from framework.training.transfer import filled

Field = tuple[str, str, int]
"""Layer, name of what it counted, and how many numbers that is."""


@dataclass(frozen=True)
class ExpertUse:
    """Sums of one step over all ranks, by layer name; empty where the model has no experts.

    tokens_per_expert_E: rows routed to each expert, float64 on the CPU. dropped: rows that capacity turned away.
    load_balance_loss, z_loss: as they enter the training loss, summed over layers. dispatch_bytes: that forwards sent
    to experts of other ranks and back.
    """

    tokens_per_expert_E: dict[str, Tensor]
    dropped: float = 0.0
    load_balance_loss: float = 0.0
    z_loss: float = 0.0
    dispatch_bytes: float = 0.0

    def shares(self) -> dict[str, list[float]]:
        """Share of its layer's rows that each expert got."""
        return {name: (counts_E / counts_E.sum().clamp(min=1)).tolist()
                for name, counts_E in self.tokens_per_expert_E.items()}

    def row(self) -> dict[str, float]:
        """The numbers for a row of metrics: extremes over all layers relative to an equal share, and means."""
        if not self.tokens_per_expert_E:
            return {}
        shares = [torch.tensor(share_E, dtype=torch.float64) for share_E in self.shares().values()]
        routed = sum(counts_E.sum().item() for counts_E in self.tokens_per_expert_E.values())
        return {
            "load_balance_loss": self.load_balance_loss,
            "z_loss": self.z_loss,
            "expert_load_max": max(share_E.max().item() * len(share_E) for share_E in shares),
            "expert_load_min": min(share_E.min().item() * len(share_E) for share_E in shares),
            "expert_entropy": sum(map(normalised_entropy, shares)) / len(shares),
            "dropped_fraction": self.dropped / max(routed, 1.0),
            "dispatch_bytes": self.dispatch_bytes,
        }


def normalised_entropy(share_E: Tensor) -> float:
    """Entropy over its largest value: 1 where all experts are used alike, 0 where one takes all."""
    return (torch.special.entr(share_E).sum() / math.log(max(len(share_E), 2))).item()


class ExpertStatistics:
    """Collects from every mixture-of-experts layer of a model what it has counted since the last time.

    holders: ranks that hold the other layers of a model that a pipeline cuts; None: all are here.
    """

    def __init__(self, model: nn.Module, holders: dist.ProcessGroup | None = None) -> None:
        self.layers = {layer_name(name): module for name, module in model.named_modules()
                       if hasattr(module, "take_statistics")}
        self._holders = holders
        self._fields: list[Field] | None = None

    def take(self, device: torch.device) -> tuple[Tensor, list[Field]]:
        """This rank's sums as one float64 vector for one all-reduce, and what stands in it.

        The first time collective over `holders`, whose layers all stand in it: zeros for those of other ranks.
        """
        taken = {(layer, field): _on(device, value.detach())
                 for layer, module in self.layers.items() for field, value in module.take_statistics().items()}
        fields = self._whole([(layer, field, len(value)) for (layer, field), value in taken.items()])
        parts = [torch.zeros(0, dtype=torch.float64, device=device)]
        for layer, field, length in fields:
            parts.append(taken[layer, field] if (layer, field) in taken else parts[0].new_zeros(length))
        return torch.cat(parts), fields

    def read(self, vector: Tensor, fields: list[Field]) -> ExpertUse:
        """What the vector of `take` says, once it is summed over the ranks."""
        counts, totals = {}, {"dropped": 0.0, "load_balance_loss": 0.0, "z_loss": 0.0, "dispatch_bytes": 0.0}
        for (layer, field, _), part in zip(fields, vector.cpu().split([length for *_, length in fields]), strict=True):
            if field == "tokens_per_expert_E":
                counts[layer] = part
            else:
                totals[field] += part.item()
        return ExpertUse(counts, **totals)

    def update_selection_biases(self, use: ExpertUse) -> None:
        """Loss-free balancing, where a layer has it, from the counts of the whole step."""
        for layer, module in self.layers.items():
            module.update_selection_bias(use.tokens_per_expert_E[layer])

    def discard(self) -> None:
        """Forget what an evaluation counted."""
        for module in self.layers.values():
            module.take_statistics()

    def _whole(self, own: list[Field]) -> list[Field]:
        if self._holders is None:
            return own
        if self._fields is None:
            parts: list[list[Field]] = [[] for _ in range(self._holders.size())]
            dist.all_gather_object(parts, own, group=self._holders)
            self._fields = sorted((field for part in parts for field in part), key=lambda field: _in_order(field[0]))
        return self._fields


def _on(device: torch.device, value: Tensor) -> Tensor:
    """As a float64 vector there, without waiting for it: of what the host has counted, which is one number each."""
    if value.device.type == "cpu" != device.type:
        return filled(value.item(), device)
    return value.to(device, torch.float64).reshape(-1)


def _in_order(layer: str) -> list[tuple[int, str]]:
    """Sorts layers.2 before layers.10."""
    return [(int(word), "") if word.isdigit() else (0, word) for word in layer.split(".")]


def layer_name(name: str) -> str:
    """The layer of a block: `layers.3` for `layers.3.block`, whatever wraps it."""
    return name.replace("_checkpoint_wrapped_module.", "").removesuffix(".block")
