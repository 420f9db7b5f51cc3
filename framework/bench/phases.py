"""Which phase a step is in, seen from outside: hooks and wrappers that are taken off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from torch import Tensor, nn

from framework.bench.timeline import OTHER, Timeline
from framework.model.attention import Attention
from framework.model.embedding import Unembedding
from framework.model.ffn import FFN
from framework.model.mamba1 import Mamba1
from framework.model.mamba2 import Mamba2
from framework.model.moe import Assignment, Dispatcher, MixtureOfExperts

if TYPE_CHECKING:
    from framework.training.trainer import Trainer

BLOCKS = {Attention: "attention", Mamba1: "ssm", Mamba2: "ssm", FFN: "ffn", MixtureOfExperts: "router",
          Unembedding: "head"}
"""An MoE block's time is the router's but for what `_Watched` and shared experts (ffn) take."""

PHASES = ("data", "forward", "attention", "ssm", "ffn", "router", "dispatch", "experts", "combine", "head", "backward",
          "optimizer", OTHER)
"""forward: what no other phase of the forward has: embedding, norms, residual streams. router: logits, choice, sorting,
auxiliary losses. dispatch, combine: what carries rows to experts and back; on one rank experts gather and sum rows
themselves, and the two are nearly nothing. head: unembedding and cross entropy, which may hold a part of its backward.
backward: with what is computed again. optimizer: gradient norm, clipping, update."""


class _Watched:
    """A dispatcher that tells the timeline when experts begin and end."""

    def __init__(self, dispatcher: Dispatcher, timeline: Timeline) -> None:
        self.dispatcher, self.timeline = dispatcher, timeline

    @property
    def bytes_sent(self) -> int | Tensor:
        return self.dispatcher.bytes_sent

    def __call__(self, x_TD: Tensor, assignment: Assignment, experts: Callable[..., Tensor]) -> Tensor:
        timeline = self.timeline

        def watched(*arguments: Any) -> Tensor:
            timeline.leave()
            try:
                with timeline.phase("experts"):
                    return experts(*arguments)
            finally:  # what is computed again stops where nothing further is needed
                timeline.enter("combine")

        timeline.enter("dispatch")
        try:
            return self.dispatcher(x_TD, assignment, watched)
        finally:
            timeline.leave()


@contextmanager
def watching(trainer: Trainer, timeline: Timeline) -> Iterator[None]:
    """Within the block the trainer's steps, on this rank, tell the timeline their phases."""
    engine, data, pipeline = trainer.engine, trainer.data.train, trainer.pipeline
    with ExitStack() as stack:
        def wrap(owner: Any, name: str, phase: str) -> None:
            stack.enter_context(patch.object(owner, name, timeline.within(phase, getattr(owner, name))))

        for name in ("batch", "documents"):
            wrap(data, name, "data")
        wrap(engine, "update", "optimizer")
        if pipeline is None:
            wrap(engine, "forward", "forward")
            wrap(engine, "backward", "backward")
        else:
            _wrap_stages(wrap)
        for module in trainer.model.modules():
            if (phase := _phase_of(module)) is not None:
                for hook in _hooks(module, phase, timeline):
                    stack.callback(hook.remove)
            if isinstance(module, MixtureOfExperts):
                stack.enter_context(patch.object(module, "dispatcher", _Watched(module.dispatcher, timeline)))
        yield


def _phase_of(module: nn.Module) -> str | None:
    """By kind: `fully_shard` gives modules classes of its own."""
    return next((phase for kind, phase in BLOCKS.items() if isinstance(module, kind)), None)


def _wrap_stages(wrap: Callable[[Any, str, str], None]) -> None:
    """A schedule calls these of its stages, which it makes when it first runs."""
    from torch.distributed.pipelining import PipelineStage

    wrap(PipelineStage, "forward_one_chunk", "forward")
    wrap(PipelineStage, "backward_one_chunk", "backward")
    wrap(PipelineStage, "backward_weight_one_chunk", "backward")


def _hooks(module: nn.Module, phase: str, timeline: Timeline) -> tuple[Any, Any]:
    return (
        module.register_forward_pre_hook(lambda *_: timeline.enter(phase)),
        module.register_forward_hook(lambda *_: timeline.leave(), always_call=True),
    )
