"""What the ledger counts, against PyTorch's own tracker and by hand."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from framework.plan.ledger import Ledger


def step(model: nn.Module, x: torch.Tensor) -> None:
    model(x).square().sum().backward()


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 32))


def test_peak_is_that_of_pytorchs_memory_tracker():
    with FakeTensorMode():
        tracked, x = model(), torch.randn(100, 64)
        tracker = MemTracker()
        tracker.track_external(tracked, x)
        with tracker:
            step(tracked, x)
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]

    ledger = Ledger()
    with FakeTensorMode(), ledger.watching():
        step(model(), torch.randn(100, 64))
    assert ledger.peak == pytest.approx(peak, rel=0.02)


def test_storages_count_once_while_they_live_and_at_their_size():
    ledger = Ledger()
    with FakeTensorMode(), ledger.watching():
        x = torch.empty(100)
        views = x.view(10, 10), x[:5]
        assert ledger.now == ledger.peak == 400
        x.untyped_storage().resize_(40)
        assert (ledger.now, ledger.peak) == (40, 400)
        del x, views
        assert ledger.now == 0
        ledger.restart_peak()
        assert ledger.peak == 0


def test_numbers_that_are_read_are_the_expected_ones():
    ledger = Ledger()
    ledger.expect([3, 5])
    ledger.expect_nonzero(7)
    with FakeTensorMode(), ledger.watching():
        assert torch.empty(2, dtype=torch.int64).tolist() == [3, 5]
        assert torch.empty(10, dtype=torch.bool).nonzero().shape == (7, 1)
        assert bool(torch.empty(()).isfinite())
