"""What a trainer runs the model, its gradients and its updates by: sharded by PyTorch, or by DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from framework.errors import UserError
from framework.parametrization.roles import declarations
from framework.training.checkpoint.state import buffer_tensors, model_tensors, optimizer_tensors
from framework.training.preconditions import require_packages
from parallel import clip_divisor, first_nonfinite_gradient, gradient_norm, set_gradient_sync

if TYPE_CHECKING:
    from framework.optim import ShardedAdamW
    from framework.recipe.schema import Recipe
    from parallel import Mesh
    from parallel.zero import Zero


@dataclass(frozen=True)
class Update:
    """What became of a step's gradients, the same on every rank.

    grad_norm: of the whole gradient before clipping, float64. culprit: what was not finite, so that nothing was
    updated; else None.
    """

    grad_norm: Tensor
    culprit: str | None = None


class Engine(Protocol):
    """Every method is collective over the ranks of the mesh."""

    def forward(self, *batch: Any) -> Tensor:
        """What the model gives in training, for `backward`."""

    def backward(self, share: Tensor, last: bool) -> None:
        """Add the gradients of this rank's share of the loss; `last`: of the step's micro-batches."""

    def update(self, loss_is_finite: Tensor) -> Update:
        """Clip and update, unless loss (a boolean on the device) or gradient is not finite; forget the gradients."""

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """The sum of all ranks' gradients, whole or a DTensor; between a step's last `backward` and `update`."""

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """A parameter in full precision, whole or a DTensor."""

    def tensors(self) -> dict[str, Tensor]:
        """The state of training by the names of a checkpoint, of any engine and layout."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave, once other values have been loaded into it."""


class ShardedEngine:
    """A model of DTensors, sharded by `parallelize`. counted: its parameters, without copies that other ranks count."""

    def __init__(
        self, model: nn.Module, optimizer: ShardedAdamW, mesh: Mesh, clip_norm: float | None,
        counted: Iterable[nn.Parameter],
    ) -> None:
        self.model, self.optimizer, self.mesh, self.clip_norm = model, optimizer, mesh, clip_norm
        self.counted = list(counted)

    def forward(self, *batch: Any) -> Tensor:
        return self.model(*batch)

    def backward(self, share: Tensor, last: bool) -> None:
        set_gradient_sync(self.model, last)
        share.backward()

    def update(self, loss_is_finite: Tensor) -> Update:
        norm = gradient_norm(self.counted, self.mesh)
        is_finite = norm.isfinite() & loss_is_finite
        divisor = None if self.clip_norm is None else clip_divisor(norm, self.clip_norm)
        self.optimizer.step(divisor, where=is_finite)
        culprit = None
        if not is_finite:
            name = first_nonfinite_gradient(self.model.named_parameters())
            culprit = f"the gradient of {name}" if name else "the loss"
        self.optimizer.zero_grad()
        return Update(norm, culprit)

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        return parameter.grad

    def weight(self, parameter: nn.Parameter) -> Tensor:
        return parameter

    def tensors(self) -> dict[str, Tensor]:
        """They alias the model and the optimizer."""
        return model_tensors(self.model) | optimizer_tensors(self.model, self.optimizer)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Nothing is left to do: loading went into the model itself."""


class ZeroEngine:
    """A plain model, as `prepare_for_zero` leaves it, whose state DeepSpeed splits."""

    def __init__(self, model: nn.Module, zero: Zero) -> None:
        self.model, self.zero = model, zero

    def forward(self, *batch: Any) -> Tensor:
        return self.zero.forward(*batch)

    def backward(self, share: Tensor, last: bool) -> None:
        self.zero.backward(share, last)

    def update(self, loss_is_finite: Tensor) -> Update:
        norm, updated = self.zero.step()
        assert loss_is_finite or not updated, "a loss that is not finite makes the gradients so"
        return Update(norm, None if updated else "the loss or a gradient")

    def gradient(self, parameter: nn.Parameter) -> Tensor:
        return self.zero.gradient(parameter)

    def weight(self, parameter: nn.Parameter) -> Tensor:
        return self.zero.weight(parameter)

    def tensors(self) -> dict[str, Tensor]:
        """Copies in host memory, sharded over all ranks; buffers alias the model."""
        tensors = buffer_tensors(self.model)
        for name, parameter in self._parameters():
            for key, value in self.zero.state(parameter).items():
                tensors[_key(name, key)] = value
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        keys = ("weight", "exp_avg", "exp_avg_sq", "step")
        try:
            self.zero.load((parameter, {key: tensors[_key(name, key)] for key in keys})
                           for name, parameter in self._parameters())
        except ValueError as error:
            raise UserError(f"parallel.engine: {error}; allowed: fsdp") from None

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, module.get_parameter(local)) for name, module, local, _ in declarations(self.model)]


def make_engine(
    recipe: Recipe, model: nn.Module, optimizer: torch.optim.AdamW, mesh: Mesh, counted: Iterable[nn.Parameter],
) -> Engine:
    """The engine that a recipe names, for a model that was built for it. Raises UserError where it cannot be."""
    layout, clip_norm = recipe.parallel, recipe.optim.clip_norm
    if layout.engine == "fsdp":
        return ShardedEngine(model, optimizer, mesh, clip_norm, counted)
    require_packages(recipe)
    from parallel.zero import Zero, ZeroOptions

    dtype = getattr(torch, recipe.training.dtype)
    options = ZeroOptions(layout.zero_stage, offload=layout.offload == "cpu", dtype=dtype, clip_norm=clip_norm)
    try:
        return ZeroEngine(model, Zero(model, optimizer, mesh.batch, options))
    except ValueError as error:
        raise UserError(f"parallel.engine: {error}") from None


def _key(name: str, key: str) -> str:
    return f"model.{name}" if key == "weight" else f"optim.{name}.{key}"
