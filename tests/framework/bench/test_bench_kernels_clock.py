"""The GPU's time apart from the host's, on a GPU and with a clock that are made up: seconds, as both see them."""

from types import SimpleNamespace

import pytest
import torch

from framework.bench.kernels import clock
from framework.bench.kernels.clock import FEWEST, MOST, times_of

HERTZ = 1e9


class Machine:
    """A host that takes time to launch what the GPU then does, one after another."""

    def __init__(self):
        self.now = self.gpu_free = 0.0
        self.runs = 0

    def launch(self, host: float, gpu: float) -> None:
        self.now += host
        self.gpu_free = max(self.gpu_free, self.now) + gpu

    def wait(self) -> None:
        self.now = max(self.now, self.gpu_free)

    def event(self, enable_timing):
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", max(self.gpu_free, self.now))
        event.elapsed_time = lambda other: 1e3 * (other.at - event.at)
        return event

    def function(self, launches, waits=False):
        def run():
            self.runs += 1
            for host, gpu in launches:
                self.launch(host, gpu)
                if waits:
                    self.wait()
        return run


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(clock.time, "perf_counter", lambda: machine.now)
    other = SimpleNamespace(zero_=lambda: machine.launch(1e-5, 1e-4))
    monkeypatch.setattr(clock, "torch", SimpleNamespace(empty=lambda *_, **__: other, uint8=torch.uint8, cuda=(
        SimpleNamespace(
            Event=machine.event, synchronize=machine.wait, current_device=lambda: 0,
            get_device_properties=lambda device: SimpleNamespace(clock_rate=HERTZ / 1e3),
            _sleep=lambda cycles: machine.launch(1e-5, cycles / HERTZ)))))
    return machine


@pytest.mark.parametrize("launches", [[(2e-4, 1e-5)] * 5, [(1e-5, 2e-3)], [(1e-5, 1e-3), (3e-3, 1e-5)]], ids=str)
def test_a_slow_host_is_no_part_of_the_gpu_time(machine, launches):
    times = times_of(machine.function(launches))
    assert times.gpu == pytest.approx(1e3 * sum(gpu for _, gpu in launches))
    assert times.host == pytest.approx(1e3 * sum(host for host, _ in launches))
    assert FEWEST + 2 <= machine.runs <= MOST + 2


def test_what_waits_for_the_gpu_takes_no_longer_and_longer(machine):
    times = times_of(machine.function([(1e-4, 1e-3)] * 2, waits=True))
    assert times.gpu >= 2.0
    assert machine.now < MOST * 0.02
