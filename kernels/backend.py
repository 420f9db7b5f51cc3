"""Which body of a function runs: Triton's or PyTorch's."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from kernels import language

BACKENDS = ("auto", "triton", "torch")

SHARED_BYTES = 148 * 1024
"""Of a multiprocessor's shared memory, what one program of the largest kernels takes: A100 and H100 have as much,
consumer GPUs, A10 and L40 99 KB."""

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

    "auto": on GPUs with SHARED_BYTES, but for float64, which tensor cores here are not used for. "triton" tries on any
    GPU, and also runs on the CPU in Triton's interpreter, for tests, and on meta tensors while launches are recorded;
    ValueError where it cannot run.
    """
    _check(backend)
    backend = _chosen if backend == "auto" else backend
    if backend == "torch":
        return False
    present = [tensor for tensor in tensors if tensor is not None]
    on_gpu = all(tensor.is_cuda for tensor in present)
    if backend == "auto":
        wide = any(tensor.dtype == torch.float64 for tensor in present)
        return on_gpu and language.AVAILABLE and not wide and all(_is_large(tensor.device.index) for tensor in present)
    if not on_gpu and not language.INTERPRETING and not all(tensor.is_meta for tensor in present):
        raise ValueError(f"backend triton: tensors are on {sorted({str(tensor.device) for tensor in present})}; "
                         "allowed: a GPU, or TRITON_INTERPRET=1")
    return True


@cache
def _is_large(gpu: int) -> bool:
    """Whether a program on this GPU may take as much shared memory as the kernels do."""
    return torch.cuda.get_device_properties(gpu).shared_memory_per_block_optin >= SHARED_BYTES


def _check(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not known; allowed: {', '.join(BACKENDS)}")
