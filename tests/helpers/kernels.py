"""How a kernel is judged: against the same function in float64, from poisoned memory, and twice."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from framework.bench.kernels.check import relative_error

FORWARD = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 5e-3}
BACKWARD = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 5e-3}
"""Largest relative error by norm."""


def check_kernel(
    kernel: Callable, reference: Callable, arguments: Sequence, dtype: torch.dtype, precise: Sequence[int] = ()
) -> None:
    """Compare a kernel's outputs and all gradients with a reference's in float64, and with its own second run's bits.

    kernel, reference: of the same arguments, to a tensor or a tuple of them. Floating arguments are given as float64
    and rounded to dtype for both, those at places in `precise` to float32 at least; all others go as they are.
    """
    rounded = [_rounded(argument, torch.promote_types(dtype, torch.float32) if place in precise else dtype)
               for place, argument in enumerate(arguments)]
    with poisoned():
        got, again = (results(kernel, rounded) for _ in range(2))
    expected = results(reference, [_rounded(argument, torch.float64) for argument in rounded])
    for kind, limits in zip(("output", "gradient"), (FORWARD, BACKWARD), strict=True):
        assert got[kind].keys() == expected[kind].keys()
        for place, value in got[kind].items():
            assert torch.equal(value, again[kind][place]), f"{kind} {place} differs between two runs"
            error = relative_error(value, expected[kind][place])
            assert error <= limits[dtype], f"{kind} {place}: {error:.2e}, allowed {limits[dtype]:.0e}"


def results(function: Callable, arguments: Sequence) -> dict[str, dict[int, Tensor]]:
    """Outputs by place, and by place of the argument the gradient of each floating one, for fixed upstream ones."""
    leaves = [argument.detach().clone().requires_grad_() if _is_float(argument) else argument
              for argument in arguments]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(0)
    differentiable = [output for output in outputs if output is not None and output.requires_grad]
    upstream = [torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
                for output in differentiable]
    torch.autograd.backward(differentiable, upstream)
    gradients = {place: leaf.grad for place, leaf in enumerate(leaves) if _is_float(leaf)}
    return {
        "output": {place: output.detach() for place, output in enumerate(outputs) if output is not None},
        "gradient": {place: gradient for place, gradient in gradients.items() if gradient is not None},
    }


@contextmanager
def poisoned() -> Iterator[None]:
    """Within it fresh memory holds NaN, or the largest number, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _rounded(argument: object, dtype: torch.dtype) -> object:
    return argument.detach().to(dtype) if _is_float(argument) else argument


def _is_float(argument: object) -> bool:
    return torch.is_tensor(argument) and argument.is_floating_point()
