"""The recipe as `upmix train` runs it, and all that is measured of it. On every rank of its layout, collectively."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from framework.bench.balanced import balanced_routing
from framework.bench.communication import communication_seconds
from framework.bench.memory import forget_peak, peak_bytes
from framework.bench.overhead import overhead_of_rounds
from framework.bench.peak import peak_flops_per_second, seconds_of
from framework.bench.phases import PHASES, watching
from framework.bench.steps import TrainingSteps, make_trainer
from framework.bench.timeline import Timeline
from framework.training.peers import Peers

if TYPE_CHECKING:
    from framework.recipe import Loaded
    from framework.training.trainer import StepResult


class Ours:
    """A trainer, and measurements of it by name. What they return is the same on every rank."""

    def __init__(self, loaded: Loaded, device: torch.device) -> None:
        self.loaded, self.device, self.peers = loaded, device, Peers()
        self.trainer = make_trainer(loaded, device)
        self.steps = TrainingSteps(self.trainer)
        self._choices = sum(sublayer.settings.top_k for sublayer in loaded.architecture.sublayers()
                            if sublayer.kind == "moe")

    def warm_up(self, num_steps: int) -> dict[str, object]:
        """Take steps that do not count; `loss`: of the first."""
        losses = [self.steps.next().loss for _ in range(num_steps)]
        forget_peak(self.device)
        return {"loss": losses[0]}

    def round(self, num_steps: int, balanced: bool = False) -> dict[str, object]:
        """Take steps; `seconds` and `tokens` in all, and of the routing `imbalance`, `dropped_fraction` and
        `rows_per_choice`, means over steps; None without experts. balanced: force the routing to be even.
        """
        taken: list[StepResult] = []
        budget, before = self.trainer.budget, self.steps.done
        with balanced_routing() if balanced else nullcontext():
            seconds = seconds_of(lambda: taken.extend(self.steps.next() for _ in range(num_steps)), self.device)
        sequences = sum(budget.batch_size(before % budget.num_steps + 1) for before in range(before, self.steps.done))
        tokens = sequences * self.loaded.recipe.data.seq_len
        return {"seconds": seconds, "tokens": tokens, **self._routing(taken, tokens)}

    def facts(self) -> dict[str, object]:
        """The most memory of a rank since it was warm, then what all ranks' devices can do at most."""
        peak_memory = max(self.peers.gather(peak_bytes(self.device)))
        peak = sum(self.peers.gather(peak_flops_per_second(self.device, self._dtype())))
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return {"peak_memory_bytes": peak_memory, "peak_flops_per_second": peak, "device": self.device.type,
                "gpu": gpu, "torch": torch.__version__, "num_threads": torch.get_num_threads()}

    def phases(self, num_steps: int, balanced: bool = False) -> dict[str, object]:
        """Seconds of a step and of its phases, which sum to it: means over steps and ranks.

        communication_seconds: measured in further steps; None on one rank.
        """
        timeline, seconds = Timeline(self.device), dict.fromkeys(PHASES, 0.0)
        with balanced_routing() if balanced else nullcontext():
            with watching(self.trainer, timeline):
                timeline.start()
                for _ in range(num_steps):
                    self.steps.next()
                measured = timeline.stop()
            for name, value in self._mean(measured).items():
                seconds[name] += value / num_steps
            several = self.peers.count > 1
            under_way = communication_seconds(self.steps.next, num_steps, self.device) if several else None
        return {
            "step_seconds": sum(seconds.values()),
            "seconds": {name: value for name, value in seconds.items() if value > 0},
            "communication_seconds": self._mean({"under_way": under_way})["under_way"] if several else None,
        }

    def overhead(self, num_rounds: int, num_steps: int) -> dict[str, object]:
        """`rounds`: see `overhead_of_rounds`.

        None where a bare loop would do other work: with several ranks, DeepSpeed, isolated documents, recomputation or
        compiled blocks.
        """
        recipe = self.loaded.recipe
        is_plain = recipe.parallel.engine == "fsdp" and not recipe.data.isolate_documents
        is_plain = is_plain and recipe.training.recompute == "none" and not recipe.training.compile
        if self.peers.count > 1 or not is_plain:
            return {"rounds": None}
        return {"rounds": overhead_of_rounds(self.loaded, self.trainer, self.steps.numbered, num_rounds, num_steps)}

    def _routing(self, taken: list[StepResult], tokens: int) -> dict[str, float | None]:
        rows = [result.experts.row() for result in taken if result.experts.tokens_per_expert_E]
        if not rows:
            return dict.fromkeys(("imbalance", "dropped_fraction", "rows_per_choice"))
        routed = sum(counts_E.sum().item() for result in taken
                     for counts_E in result.experts.tokens_per_expert_E.values())
        dropped = sum(result.experts.dropped for result in taken)
        return {"imbalance": sum(row["expert_load_max"] for row in rows) / len(rows),
                "dropped_fraction": dropped / max(routed, 1.0),
                "rows_per_choice": (routed - dropped) / (tokens * self._choices)}

    def _mean(self, values: dict[str, float]) -> dict[str, float]:
        """Over ranks."""
        gathered = self.peers.gather(values)
        names = dict.fromkeys(name for each in gathered for name in each)
        return {name: sum(each.get(name, 0.0) for each in gathered) / len(gathered) for name in names}

    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.loaded.recipe.training.dtype)
