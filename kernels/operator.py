"""Triton's bodies as operators of PyTorch, so that its compiler and meta tensors take them as one step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, library

_opened = False

_LIBRARY = library.Library("upmix", "DEF")
"""Operators are defined one floor below `library.custom_op`, which takes ten microseconds more for each call."""


class Operator:
    """`upmix::NAME`: what runs on tensors, and `fake`, which makes empty results of the same shapes, dtypes and device.

    Both take the same arguments, annotated as torch's custom operators want it; results are fresh tensors. Not
    differentiable: a torch.autograd.Function calls one operator forward and another backward.
    """

    def __init__(
        self, name: str, run: Callable[..., Any], fake: Callable[..., Any], mutates: tuple[str, ...] = ()
    ) -> None:
        self.run = _on_their_gpu(run)
        _LIBRARY.define(name + library.infer_schema(run, mutates_args=mutates))
        _LIBRARY.impl(name, self.run, "CompositeExplicitAutograd")
        library.register_fake(f"upmix::{name}", fake, lib=_LIBRARY)
        self.operator = getattr(torch.ops.upmix, name).default

    def __call__(self, *arguments: Any) -> Any:
        return self.run(*arguments) if _opened else self.operator(*arguments)


def _on_their_gpu(run: Callable[..., Any]) -> Callable[..., Any]:
    """Launches go to the current GPU: while it runs that is the one of the first tensor on any."""
    @wraps(run)
    def guarded(*arguments: Any) -> Any:
        found = next((argument for argument in arguments if isinstance(argument, Tensor) and argument.is_cuda), None)
        if found is None or found.device.index == torch.cuda.current_device():
            return run(*arguments)
        with torch.cuda.device(found.device):
            return run(*arguments)

    return guarded


def operator(name: str, fake: Callable[..., Any], mutates: tuple[str, ...] = ()) -> Callable[[Callable], Operator]:
    """Decorates what runs on tensors; see `Operator`."""
    return lambda run: Operator(name, run, fake, mutates)


@contextmanager
def opened() -> Iterator[None]:
    """Within it operators run their bodies on whatever tensors they get, meta tensors too: launches can be seen."""
    global _opened
    _opened = True
    try:
        yield
    finally:
        _opened = False
