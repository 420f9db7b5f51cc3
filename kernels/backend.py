"""Which body of a function runs: Triton's or PyTorch's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels import language

BACKENDS = ("auto", "triton", "torch")

_chosen = "auto"


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within it "auto" means this one of BACKENDS, for every function that is not told otherwise."""
    global _chosen
    _check(backend)
    before, _chosen = _chosen, backend
    try:
        yield
    finally:
        _chosen = before


def runs_triton(backend: str, *tensors: Tensor | None) -> bool:
    """Whether Triton is to work on these tensors.

    "auto": on GPUs, but for float64, which tensor cores here are not used for. "triton" also runs on the CPU in
    Triton's interpreter, for tests, and on meta tensors while launches are recorded; ValueError where it cannot run.
    """
    _check(backend)
    backend = _chosen if backend == "auto" else backend
    if backend == "torch":
        return False
    present = [tensor for tensor in tensors if tensor is not None]
    on_gpu = all(tensor.is_cuda for tensor in present)
    if backend == "auto":
        return on_gpu and language.AVAILABLE and all(tensor.dtype != torch.float64 for tensor in present)
    if not on_gpu and not language.INTERPRETING and not all(tensor.is_meta for tensor in present):
        raise ValueError(f"backend triton: tensors are on {sorted({str(tensor.device) for tensor in present})}; "
                         "allowed: a GPU, or TRITON_INTERPRET=1")
    return True


def _check(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not known; allowed: {', '.join(BACKENDS)}")
