"""A function of `kernels` at one shape: its arguments, its floor, and what a user would pick instead."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Arguments = Sequence[object]


@dataclass(frozen=True)
class Work:
    """What one kernel cannot do without: operations of matrix products, bytes to and from memory, and exponentials."""

    name: str
    flops: float
    bytes: float
    exponentials: float = 0.0

    def seconds(self, flops_per_second: float, bytes_per_second: float, exponentials_per_second: float) -> float:
        """Each at its best, behind the others' backs."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second,
                   self.exponentials / exponentials_per_second)


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


def upstream_gradients(results: Sequence[object]) -> list[Tensor]:
    """A random gradient of each differentiable result, the same for the same shapes and dtypes.

    Gradients of ones would hide what a backward does wrong: rows of ones are all alike, and gates that sum to one have
    no gradient.
    """
    outputs = differentiable(results)
    if any(output.is_meta for output in outputs):
        return [torch.empty_like(output) for output in outputs]
    generator = torch.Generator(outputs[0].device).manual_seed(1) if outputs else None
    return [torch.randn(output.shape, generator=generator, device=output.device).to(output.dtype)
            for output in outputs]


def forward_and_backward(
    function: Callable[..., object], arguments: Arguments, upstream: Sequence[Tensor] | None = None
) -> tuple[Tensor | None, ...]:
    """Results, and gradients of all arguments that require one (None where there is none).

    upstream: gradients of the differentiable results; None: `upstream_gradients` of them.
    """
    results = call(function, arguments)
    outputs, leaves = differentiable(results), differentiable(arguments)
    if not outputs or not leaves:
        return results
    upstream = upstream_gradients(results) if upstream is None else upstream
    return *results, *torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)
