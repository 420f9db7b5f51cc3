"""A function of `kernels` at one shape: its arguments, its floor, and what a user would pick instead."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Arguments = Sequence[object]


@dataclass(frozen=True)
class Work:
    """What one kernel cannot do without: operations of matrix products, and bytes to and from memory."""

    name: str
    flops: float
    bytes: float

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Arithmetic and memory at their measured best, one behind the other's back."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


@dataclass(frozen=True)
class Case:
    """A function, how to call it at a shape, and what to hold it against.

    arguments: (device, number of tokens or None for all of the shape's) -> what `run` takes; tensors that require a
    gradient get one. run: -> a tensor or a tuple of them. forward, backward: the work of each pass, empty where there
    is no backward, or where the forward computes the gradients already. peers: name -> what takes the same arguments,
    None where it is not installed. check_tokens: of a comparison with float64, by `reference`, or
    `run` itself. timed: else it is only compiled.
    """

    kernel: str
    shape: str
    arguments: Callable[[torch.device, int | None], Arguments]
    run: Callable[..., object]
    forward: tuple[Work, ...]
    backward: tuple[Work, ...] = ()
    peers: dict[str, Callable[..., object] | None] = field(default_factory=dict)
    check_tokens: int = 1024
    reference: Callable[..., object] | None = None
    gradients_in_forward: bool = False
    timed: bool = True

    @property
    def config(self) -> str:
        return f"{self.kernel}, {self.shape}"


def call(function: Callable[..., object], arguments: Arguments) -> tuple[Tensor, ...]:
    """The function's results, as a tuple."""
    results = function(*arguments)
    return results if isinstance(results, tuple) else (results,)


def differentiable(results: Sequence[object]) -> list[Tensor]:
    return [result for result in results if isinstance(result, Tensor) and result.requires_grad]


def with_gradient(arguments: Arguments) -> list[Tensor]:
    return differentiable(arguments)


def forward_and_backward(function: Callable[..., object], arguments: Arguments) -> tuple[Tensor, ...]:
    """Results, and gradients of all that require one, for upstream gradients of ones."""
    results = call(function, arguments)
    outputs, leaves = differentiable(results), with_gradient(arguments)
    if not outputs or not leaves:
        return results
    upstream = [torch.ones_like(output) for output in outputs]
    return *results, *torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)
