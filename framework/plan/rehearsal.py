"""One rank's step in a world that is not there: the recipe's own code, on tensors without memory.

Process groups answer at once and carry nothing; tensors have shapes and no bytes. What they would take is counted on
the way, GPU kernels' buffers included, and so is what collectives would send.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FakeProcessGroup
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from framework.errors import UserError
from framework.model import LanguageModel, build_language_model
from framework.parallelize import parallelize
from framework.parametrization import widths
from framework.plan.balanced import balance_routing
from framework.plan.ledger import Ledger
from framework.plan.schedule import micro_batches_of
from framework.recipe.stages import num_stages, stage_layers
from framework.training.budget import make_budget
from framework.training.preconditions import mesh_sizes
from framework.training.setup import build_optimizer
from framework.training.shares import forward_size
from framework.training.statistics import ExpertStatistics
from framework.training.trainer import Trainer
from kernels import cross_entropy, language
from kernels.backend import use_backend
from parallel import Mesh

if TYPE_CHECKING:
    from framework.recipe import Loaded, Recipe
    from parallel import MeshSizes

MAX_WORLD = 4096


@dataclass(frozen=True)
class Rehearsal:
    """Bytes on one rank. parameters, optimizer: what it keeps between steps; gradients: from backward to update. peak:
    the most that lives at one time in a step, all included. sent: by axis (dp, ep, tp, cp, pp), what it sends in a
    step. seconds: wall time of the rehearsal.
    """

    rank: int
    world: int
    parameters: int
    gradients: int
    optimizer: int
    peak: int
    sent: dict[str, float]
    seconds: float


def rehearse(loaded: Loaded, rank: int) -> Rehearsal:
    """Take the first step of a recipe as one rank of its world.

    Routing is balanced. Kernels are those of a GPU, with the buffers that they allocate; attention is PyTorch's on the
    CPU, which keeps what flash attention keeps on a GPU. Of a step's forwards, but for a pipeline's, the first and the
    last are taken: those between are as the first.

    Must not be called where a process group is. Raises UserError for a rank that is not there, for a world above
    MAX_WORLD, and for what has no rehearsal: DeepSpeed, compilation, symmetric memory.
    """
    begin, sizes = time.perf_counter(), mesh_sizes(loaded.recipe.parallel)
    _require(loaded, sizes, rank)
    recipe, num_left_out = _shortened(loaded.recipe)
    with _world(rank, sizes.world):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Set timeout is now only supported")
            mesh = Mesh(sizes, "cpu")
        model = _split_on_meta(loaded, mesh)
        ledger = Ledger()
        with _gpu_kernels(), FakeTensorMode(allow_non_fake_inputs=True), ledger.watching():
            _give_storage(model)
            parameters = ledger.now
            optimizer = build_optimizer(loaded, model)
            state = ledger.now - parameters
            balance_routing(model, ledger)
            trainer = _Observed(recipe, make_budget(recipe.data, recipe.training), mesh, model, optimizer,
                                _Data(_Zeros(recipe.data.seq_len)))
            # In a pipeline ranks would tell each other, as objects, which layers they count for.
            trainer.statistics = ExpertStatistics(model)
            ledger.restart_peak()
            sent = trainer.rehearse(ledger)
            gradients = sum(parameter.grad.to_local().nbytes for parameter in model.parameters())
        for key, size in sent[0].items():
            ledger.sent[key] += num_left_out * size
        return Rehearsal(rank, sizes.world, parameters, gradients, state, ledger.peak, _by_axis(ledger.sent, mesh),
                         time.perf_counter() - begin)


class _Observed(Trainer):
    def rehearse(self, ledger: Ledger) -> list[Counter]:
        """A step up to the update, which on a GPU allocates nothing of any size: what is sent by each forward's end."""
        sent, backward = [], self.engine.backward

        def noted(share: Tensor, last: bool) -> None:
            backward(share, last)
            sent.append(ledger.sent.copy())

        with patch.object(self.engine, "backward", noted):
            self._sum_over_ranks(self._forward_backward(1), 0)
        return sent or [Counter()]


@dataclass(frozen=True)
class _Zeros:
    """Stands in for a data set's split."""

    seq_len: int

    def batch(self, first_sample: int, count: int) -> np.ndarray:
        return np.zeros((count, self.seq_len + 1), dtype=np.int64)

    def documents(self, first_sample: int, count: int) -> np.ndarray:
        return np.zeros((count, self.seq_len), dtype=np.int64)


@dataclass(frozen=True)
class _Data:
    train: _Zeros


def _shortened(recipe: Recipe) -> tuple[Recipe, int]:
    """The recipe with at most two forwards of its full batch a step, and how many it has besides."""
    ranks = mesh_sizes(recipe.parallel).batch
    size, count = forward_size(recipe.data, ranks), micro_batches_of(recipe)
    taken = count if recipe.parallel.pp > 1 else min(count, 2)
    changes = {"batch_ramp": {}, "micro_batch_size": size, "batch_size": ranks * size * taken}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)}), count - taken


def _require(loaded: Loaded, sizes: MeshSizes, rank: int) -> None:
    layout = loaded.recipe.parallel
    if sizes.world > MAX_WORLD:
        raise UserError(f"--dry-run: a world of {sizes.world} ranks; allowed: up to {MAX_WORLD}")
    if not 0 <= rank < sizes.world:
        raise UserError(f"--rank {rank}: no such rank; allowed: 0 to {sizes.world - 1}")
    if loaded.recipe.training.compile:
        raise UserError("--dry-run: training.compile true compiles nothing without memory; allowed: false")
    if layout.dispatch == "symmetric_memory":
        raise UserError("--dry-run: parallel.dispatch symmetric_memory needs GPUs; allowed: auto, all_to_all")


@contextmanager
def _world(rank: int, size: int) -> Iterator[None]:
    assert not dist.is_initialized(), "this process is a rank already"
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size,
                            pg_options=FakeProcessGroup.Options())
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _gpu_kernels() -> Iterator[None]:
    """Kernels as on a GPU: their buffers are allocated, nothing is launched."""
    from triton import KernelInterface

    with ExitStack() as stack:
        stack.enter_context(patch.object(language, "INTERPRETING", True))  # else they refuse the CPU
        stack.enter_context(use_backend("triton"))
        stack.enter_context(patch.object(KernelInterface, "__getitem__", lambda kernel, grid: lambda *_, **__: None))
        stack.enter_context(patch.dict(cross_entropy.CHUNK_LOGITS, cpu=cross_entropy.CHUNK_LOGITS["cuda"]))
        yield


def _split_on_meta(loaded: Loaded, mesh: Mesh) -> LanguageModel:
    training, layout = loaded.recipe.training, loaded.recipe.parallel
    with torch.device("meta"):
        model = build_language_model(loaded.architecture, widths(loaded.recipe, loaded.architecture))
    stages = stage_layers(loaded.architecture, loaded.recipe.data.seq_len, num_stages(layout))
    return parallelize(model, mesh, dtype=getattr(torch, training.dtype), recompute=training.recompute,
                       dedup_dispatch=layout.dedup_dispatch, stages=stages)


def _give_storage(model: nn.Module) -> None:
    """What `to_empty` does, which cannot swap tensors that FakeTensorMode has seen."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in made:
                local = parameter.to_local()
                empty = torch.empty(local.shape, dtype=local.dtype, device="cpu")
                made[parameter] = nn.Parameter(DTensor(empty, parameter._spec, requires_grad=False))
            module._parameters[name] = made[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def _by_axis(sent: Mapping[tuple[str, str, bool], float], mesh: Mesh) -> dict[str, float]:
    """Sums by axis; talk among groups that span axes is small, and left out.

    Axes that span the whole world share its group: then what is sent tells them apart, and an all-to-all is of ep.
    """
    groups = {axis: getattr(mesh, axis).get_group().group_name for axis in ("ep", "tp", "cp")}
    found = dict.fromkeys(("dp", "ep", "tp", "cp", "pp"), 0.0)
    for (group, kind, is_functional), size in sent.items():
        axes = [axis for axis, name in groups.items() if name == group and getattr(mesh, axis).size() > 1]
        if kind == "send":
            found["cp" if "cp" in axes else "pp"] += size
        elif not is_functional:
            found["dp"] += size
        elif kind == "alltoall" and axes:
            found[axes[0]] += size
        elif axes:
            found[axes[-1]] += size
    return found
