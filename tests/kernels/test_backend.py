"""Which body runs, and on which GPU."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from kernels import backend
from kernels.backend import runs_triton
from kernels.operator import operator


@pytest.fixture
def gpu_tensors(monkeypatch):
    """Tensors that are on GPUs, as far as anybody asks; 99 KB on the first, as an L40 has, 227 KB on the second."""
    kilobytes = {0: 99, 1: 227}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(
        shared_memory_per_block_optin=1024 * kilobytes[gpu]))
    backend._is_large.cache_clear()
    with FakeTensorMode():
        yield [torch.empty(2, device=f"cuda:{gpu}") for gpu in kilobytes]
    backend._is_large.cache_clear()


def test_gpus_without_shared_memory_enough_get_pytorch(gpu_tensors):
    small, large = gpu_tensors
    assert not runs_triton("auto", small) and runs_triton("auto", large) and not runs_triton("auto", large, small)
    assert runs_triton("triton", small) and not runs_triton("torch", large)
    assert not runs_triton("auto", large.double())


def test_launches_go_to_the_gpu_of_the_tensors(gpu_tensors, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: chosen.append(device) or nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    @operator("probe_of_test_backend", lambda scale, x: torch.empty_like(x))
    def probe(scale: float, x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    probe.run(2.0, gpu_tensors[1])
    assert chosen == [torch.device("cuda:1")]
    probe.run(2.0, torch.empty(1, device="cpu"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    probe.run(2.0, gpu_tensors[1])
    assert len(chosen) == 1
