"""Whether a case's function is right, held against the same function in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from framework.bench.kernels.case import Arguments, Case, forward_and_backward, upstream_gradients
from kernels.backend import use_backend

TOLERANCE = 1e-2
"""Relative, by norm: results are rounded to bfloat16, and so is what goes from kernel to kernel."""


def largest_error(case: Case, device: torch.device, num_tokens: int | None = None) -> float:
    """Of all results and gradients with Triton on the device; infinite where integers differ or a number is missing."""
    torch.manual_seed(0)
    arguments = case.arguments(device, num_tokens or case.check_tokens)
    wide = _wide(arguments)
    with use_backend("triton"):
        got = forward_and_backward(case.run, arguments)
    # Gradients among these are no function of anything, and have none upstream.
    upstream = [gradient.double() for gradient in upstream_gradients(got)]
    with use_backend("torch"):
        expected = forward_and_backward(case.reference or case.run, wide, upstream)
    return max(relative_error(*pair) for pair in zip(got, expected, strict=True))


def _wide(arguments: Arguments) -> Sequence[object]:
    """The same in float64, apart from what they were made of: a function may write over its arguments."""
    return [argument.detach().double().requires_grad_(argument.requires_grad) if _is_float(argument) else argument
            for argument in arguments]


def relative_error(got: object, expected: object) -> float:
    """|got - expected| / |expected| by norm.

    Infinite where got is not finite, where integers differ, where zeros were expected and there are none, and where one
    of both is a tensor and the other is not; objects that are no tensors are passed over.
    """
    if not isinstance(got, Tensor) or not isinstance(expected, Tensor):
        return float("inf") if isinstance(got, Tensor) or isinstance(expected, Tensor) else 0.0
    if not got.is_floating_point() and not expected.is_floating_point():
        return 0.0 if torch.equal(got, expected) else float("inf")
    if not got.isfinite().all():
        return float("inf")
    got, expected = got.detach().double(), expected.detach().double()
    difference, scale = (got - expected).norm(), expected.norm()
    return float(difference / scale) if scale > 0 else (0.0 if difference == 0 else float("inf"))


def _is_float(argument: object) -> bool:
    return isinstance(argument, Tensor) and argument.is_floating_point()
