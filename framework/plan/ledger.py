"""What a step's tensors would take and what its ranks would send, written down while it runs without memory.

Under PyTorch's FakeTensorMode operations make tensors of the right shapes and no bytes. A ledger sees each of them.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed._tools.fake_collectives import CollectiveOp, collective_ops
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.operator import Operator

_SENT: dict[str, Callable[[int, int], float]] = {
    "allgather": lambda size, ranks: size * (ranks - 1),
    "reducescatter": lambda size, ranks: size * (ranks - 1) / ranks,
    "allreduce": lambda size, ranks: 2 * size * (ranks - 1) / ranks,
    "alltoall": lambda size, ranks: size * (ranks - 1) / ranks,
    "send": lambda size, ranks: size,
}
"""Bytes that a rank sends for an input of `size` bytes, by what the name of a collective begins with: gathers and sums
round a ring, all-to-alls of equal parts (docs/parallelism.md)."""


class Ledger(TorchDispatchMode):
    """Sums the storages that are alive, and what goes into collectives, within FakeTensorMode.

    now, peak: bytes. sent: bytes that this rank sends, by process group, kind of collective (as in _SENT) and whether
    it is a functional one, which all are but those of `fully_shard` and of pipelines. A number that the program reads
    out of a tensor is what `expect` said; without it 0.0, true or 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sent: Counter[tuple[str, str, bool]] = Counter()
        self._held: dict[int, int] = {}
        self._numbers: list[int] = []
        self._num_nonzero = 0
        self._bodies: dict[Any, Callable[..., Any]] = {}

    def expect(self, numbers: list[int]) -> None:
        """The whole numbers that the program reads next, in order."""
        self._numbers = list(numbers)

    def expect_nonzero(self, count: int) -> None:
        """How many elements `nonzero` finds from now on."""
        self._num_nonzero = count

    def restart_peak(self) -> None:
        """Forget how much there was before."""
        self.peak = self.now

    @contextmanager
    def watching(self) -> Iterator[Ledger]:
        """Within the block, under FakeTensorMode, everything is written down."""
        resize, call = torch.UntypedStorage.resize_, Operator.__call__

        def noted_resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            resize(storage, size)
            if storage._cdata in self._held:
                self._note(storage)
            return storage

        def noted_call(operator: Operator, *arguments: Any) -> Any:
            self._bodies[operator.operator] = operator.run
            return call(operator, *arguments)

        # `fully_shard` frees what it gathered by resizing a storage, which no operation tells of.
        with (patch.object(torch.UntypedStorage, "resize_", noted_resize),
              patch.object(Operator, "__call__", noted_call), self):
            yield self

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if any(issubclass(kind, (DTensor, AsyncCollectiveTensor)) for kind in types):
            return NotImplemented  # it does the same on the tensor within, which then comes by here
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._number(args[0])
        if func is torch.ops._c10d_functional.wait_tensor.default:
            return args[0]  # as it does; without memory it would make another
        if func is torch.ops.aten.nonzero.default:
            out = args[0].new_empty(self._num_nonzero, args[0].ndim, dtype=torch.int64)
        elif func in self._bodies:
            # What an operator allocates inside counts too.
            with self:
                out = self._bodies[func](*args, **kwargs or {})
        else:
            out = func(*args, **kwargs or {})
        if func in collective_ops:
            self._note_collective(func, args)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._note(tensor.untyped_storage())
        return out

    def _number(self, tensor: Tensor) -> float | int | bool:
        if tensor.dtype == torch.bool:
            return True
        if tensor.dtype.is_floating_point:
            return 0.0
        return self._numbers.pop(0) if self._numbers else 1  # stages of a pipeline vote so that their shapes are fixed

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            weakref.finalize(storage, self._drop, key).atexit = False
        self.now += size - self._held.get(key, 0)
        self._held[key] = size
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self._held.pop(key)

    def _note_collective(self, func: Any, args: tuple) -> None:
        library, name = func.name().replace("_", "").split("::")
        kind = next((kind for kind in _SENT if name.startswith(kind)), None)
        if kind is None:
            return
        group = CollectiveOp.get_process_group(func, args)
        inputs = args[1] if name.startswith(("allgatherbase", "reducescatterbase")) else args[0]
        size = sum(part.numel() * part.element_size()
                   for part in tree_leaves(inputs) if isinstance(part, Tensor))
        self.sent[group.group_name, kind, library != "c10d"] += _SENT[kind](size, group.size())
