"""Stages of a pipeline, run by the schedules of torch.distributed.pipelining.

Stage s stands on rank s modulo the number of ranks, so that the first and the last are on the first and last rank.
Shapes: B sequences of a step on this rank, S tokens, D model width.
"""

import logging
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import ScheduleInterleavedZeroBubble
from torch.torch_version import TorchVersion

from parallel.bubble import bubble_share, join_backwards, one_forward_one_backward, read_actions
from parallel.mesh import Mesh

log = logging.getLogger(__name__)

SCHEDULES = {
    "1f1b": Schedule1F1B, "interleaved": ScheduleInterleaved1F1B, "zero_bubble": ScheduleInterleavedZeroBubble,
}

# Before, PyTorch fails to begin a backward at an autograd function that is written in Python.
CAN_SPLIT_BACKWARD = TorchVersion(torch.__version__) >= (2, 13)


def stages_of(rank: int, num_ranks: int, num_stages: int) -> range:
    """The stages that stand on a rank."""
    return range(rank, num_stages, num_ranks)


class Pipeline:
    """Runs this rank's stages on micro-batches. Every method is collective over the ranks of `mesh`.

    stages: by number, each the root of its own `fully_shard`. A stage maps int64 tokens [b, S] (the first) or
    activations [b, S / tp, D] to activations of the same shape, or (the last) to the scalar sum of losses, float32 at
    least. Its output is no view: splitting the backward detaches it in place.
    dtype, width: of activations between stages, D.

    split_backward: zero_bubble computes gradients of inputs first, of weights when there is time. It runs through the
        graph twice: not where activations are recomputed or blocks compiled, nor before torch 2.13. The whole backward
        then stands where its first half would; gradients are the same.
    """

    def __init__(
        self, stages: Mapping[int, nn.Module], num_stages: int, mesh: Mesh, schedule: str, dtype: torch.dtype,
        width: int, split_backward: bool = True,
    ) -> None:
        assert all(isinstance(stage, FSDPModule) for stage in stages.values()), "a stage without fully_shard"
        self.stages, self.num_stages, self.mesh = dict(stages), num_stages, mesh
        self.schedule, self.dtype, self.width = schedule, dtype, width
        self.splits_backward = split_backward and CAN_SPLIT_BACKWARD
        self.device = torch.device(mesh.device_type)
        self.holds_first, self.holds_last = 0 in self.stages, num_stages - 1 in self.stages
        self.bubble_share = 0.0
        self._schedules = {}
        self._num_tokens = 1

    def train(self, tokens_BS: Tensor, num_micro_batches: int, num_tokens: int, **inputs: Tensor) -> Tensor:
        """Back-propagate the losses of a step's micro-batches, each divided by num_tokens; gradients are summed.

        tokens_BS: int64 [B, S], split along B into equal micro-batches, as are `inputs`, which every stage gets by
        name; among them targets_BS. Returns the sum of the divided losses on the last stage's ranks, zero elsewhere:
        float64. `bubble_share` is then that of the schedule.
        """
        schedule = self._schedule(tokens_BS, num_micro_batches, training=True)
        self._num_tokens = num_tokens
        return self._run(schedule.step, tokens_BS, inputs)

    def evaluate(self, tokens_BS: Tensor, num_micro_batches: int, **inputs: Tensor) -> Tensor:
        """The sum of the losses, undivided, as `train` returns it; forwards only."""
        schedule = self._schedule(tokens_BS, num_micro_batches, training=False)
        self._num_tokens = 1
        return self._run(schedule.eval, tokens_BS, inputs)

    def _run(self, run: Callable[..., object], tokens_BS: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        losses: list[Tensor] = []
        last = dict(target=inputs["targets_BS"], losses=losses) if self.holds_last else {}
        run(*([tokens_BS] if self.holds_first else []), return_outputs=False, **last, **inputs)
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        return sum((loss.detach() for loss in losses), zero)

    def _schedule(self, tokens_BS: Tensor, num_micro_batches: int, training: bool) -> object:
        """Made once for each number and shape of micro-batches: stages allocate what they receive beforehand."""
        micro_batch = tokens_BS.shape[0] // num_micro_batches, tokens_BS.shape[1]
        key = training, num_micro_batches, micro_batch
        if key not in self._schedules:
            self._schedules[key] = self._make(num_micro_batches, micro_batch)
        schedule, share = self._schedules[key]
        if training and share != self.bubble_share:
            self.bubble_share = share
            log.info("pipeline: %d micro-batches a step, idle %.1f %% of the time", num_micro_batches, 100 * share)
        return schedule

    def _make(self, num_micro_batches: int, micro_batch: tuple[int, int]) -> tuple[object, float]:
        kind = SCHEDULES[self.schedule]
        stages = [self._stage(number, *micro_batch) for number in self.stages]
        settings = dict(n_microbatches=num_micro_batches, loss_fn=self._share, scale_grads=False)
        if kind is Schedule1F1B:
            order = one_forward_one_backward(self.num_stages, num_micro_batches)
            return kind(*stages, **settings), bubble_share(order)
        schedule = kind(stages, **settings)
        order = {rank: read_actions(actions) for rank, actions in schedule.pipeline_order.items()}
        if not self.splits_backward:
            order = {rank: join_backwards(actions) for rank, actions in order.items()}
        return schedule, bubble_share(order)

    def _stage(self, number: int, batch: int, seq_len: int) -> PipelineStage:
        """With shapes stated, since without them each stage would first run a forward on invented data."""
        with torch.device("meta"):
            tokens = torch.empty(batch, seq_len, dtype=torch.int64)
            shape = batch, seq_len // self.mesh.tp.size(), self.width
            x_BSD = torch.empty(shape, dtype=self.dtype, requires_grad=True)
            loss = torch.empty((), dtype=torch.promote_types(self.dtype, torch.float32), requires_grad=True)
        return PipelineStage(
            self.stages[number], number, self.num_stages, self.device, group=self.mesh.pp.get_group(),
            input_args=(tokens if number == 0 else x_BSD,),
            output_args=(loss if number == self.num_stages - 1 else x_BSD,),
            dw_builder=None if self.splits_backward else _leave_nothing,
        )

    def _share(self, loss: Tensor, target: Tensor) -> Tensor:
        return loss / self._num_tokens


def _leave_nothing() -> Callable[[], None]:
    """Nothing of a backward is left after its first half: with such a builder PyTorch runs all of it then."""
    return lambda: None


def group_of_ends(mesh: Mesh) -> dist.ProcessGroup | None:
    """The first and the last rank of this rank's pipeline; None on the ranks between. Collective over the world."""
    own, num_columns = None, mesh.stage.size()
    for column in range(num_columns):
        # Every rank makes every group, in the same order.
        ends = [column, column + (mesh.pp.size() - 1) * num_columns]
        group = dist.new_group(ends)
        if dist.get_rank() in ends:
            own = group
    return own
