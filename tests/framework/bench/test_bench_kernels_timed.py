"""Cases at small shapes: functions and their peers give the same, and times are taken of what is right."""

import itertools
import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from framework.bench.kernels import command, dispatch_cases, head_cases, moe_cases, ssm_cases
from framework.bench.kernels.case import Case, Work, call, forward_and_backward, upstream_gradients
from framework.bench.kernels.check import TOLERANCE, largest_error, relative_error
from framework.bench.kernels.clock import Times
from framework.bench.kernels.floor import H100, Ceilings
from framework.bench.kernels.timed import BOTH, FORWARD, time_cases
from kernels.backend import use_backend
from kernels.moe import fused_experts, router, rows

CPU = torch.device("cpu")
MOE = moe_cases.MoE("small", 16, 16, 16, 4, 2)
CHANNELS = ssm_cases.Channels(1, 20, 24, 8)
SMALL = [
    moe_cases.layer_case(MOE), moe_cases.experts_case(MOE), moe_cases.router_case(MOE), moe_cases.sort_case(MOE),
    moe_cases.gather_case(MOE), moe_cases.sum_case(MOE),
    ssm_cases.ssd_case(ssm_cases.Scan(1, 20, 2, 1, 16, 16)), ssm_cases.selective_case(CHANNELS, continued=True),
    ssm_cases.convolution_case(CHANNELS), ssm_cases.norm_case(CHANNELS),
    head_cases.head_case(head_cases.Head(16, 100, 16)), head_cases.rows_case(head_cases.Head(16, 101)),
    head_cases.shard_case(head_cases.Head(16, 100)),
    dispatch_cases.dispatch_case(MOE, False), dispatch_cases.dispatch_case(MOE, True),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.config)
def test_functions_are_checked_and_peers_agree(case):
    assert largest_error(case, CPU, num_tokens=16) <= TOLERANCE
    for name, peer in case.peers.items():
        if peer is None or name in ("mamba_ssm", "causal_conv1d", "fla simple_gla"):
            continue
        torch.manual_seed(0)
        arguments = case.arguments(CPU, 16)
        copies = [argument.clone() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        with use_backend("torch"):
            ours, theirs = call(case.run, arguments), call(peer, copies)
        for our, their in zip(ours, theirs, strict=False):  # some give less: no state, no tail
            assert relative_error(their, our) <= 0.02, name


def doubling(times: float, device: torch.device = CPU) -> Case:
    """A kernel that is right where times is 2."""
    def arguments(device, num_tokens):
        return [torch.ones(num_tokens or 4, device=device).requires_grad_()]

    return Case("double", "T=4", arguments, lambda x: x * times, (Work("up", 8e12, 0),), (Work("down", 0, 30e12),),
                {"sum": lambda x: x + x, "none": None, "bad": lambda x: x.view(3)}, reference=lambda x: x * 2)


def test_rows_have_time_floor_and_peers():
    forward, both = time_cases([doubling(2.0)], Ceilings(1e12, 1e12, 1e12), CPU,
                               measure=lambda run: run() and Times(10_000.0, 3.0))
    assert (forward.direction, both.direction) == (FORWARD, BOTH)
    assert forward.floor_milliseconds == 8000 and both.floor_milliseconds == 38_000 and forward.error == 0
    assert forward.host_milliseconds == 3.0 and forward.of_floor == 0.8 and forward.as_dict()["of_floor"] == 0.8
    assert forward.peers["sum"] == 10_000.0 and forward.peers["none"] == "not installed"
    assert forward.peers["bad"].startswith("RuntimeError: ")


def test_what_is_wrong_fails_or_comes_too_late_is_not_timed():
    def never(run):
        raise KeyboardInterrupt

    rows = list(time_cases([doubling(2.1)], H100, CPU, measure=never))
    assert [row.fault for row in rows] == ["wrong by 5.0e-02"] * 2 and rows[0].of_floor is None
    rows = list(time_cases([doubling(2.0)], H100, CPU, measure=never, budget_seconds=-1))
    assert [row.fault for row in rows] == ["not measured: no time left"] * 2

    def out_of_memory(run):
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore of it")

    rows = list(time_cases([doubling(2.0)], H100, CPU, measure=out_of_memory))
    assert {row.fault for row in rows} == {"OutOfMemoryError: CUDA out of memory."}


@pytest.mark.parametrize("factor", [2.0, 2.1])
def test_the_command_says_it_in_json_and_in_a_table(factor, monkeypatch, capsys):
    """As on a GPU, whose part the CPU takes."""
    monkeypatch.setattr(command, "all_cases", lambda only: [doubling(factor)])
    monkeypatch.setattr(command, "compile_launches", lambda launches, progress: launches)
    monkeypatch.setattr(command, "measure", lambda: H100)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(command, "time_cases", lambda cases, ceilings, device, **limits: time_cases(
        cases, ceilings, CPU, lambda run: run() and Times(25.0, 3.0), **limits))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    code = command.main(["--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["device"] == "a GPU" and said["flops_per_second"] == H100.flops_per_second
    assert [row["direction"] for row in said["rows"]] == [FORWARD, BOTH] and said["rows"][0]["kernel"] == "double"
    assert command.main([]) == code
    table = capsys.readouterr().out
    if factor == 2.0:
        assert code == 0 and said["rows"][0]["milliseconds"] == 25.0 and said["rows"][0]["peers"]["sum"] == 25.0
        row = "| double | T=4 | forward | 10.127 | 25.000 | 41% | 3.000 | sum: 25.000; none: not installed; bad: "
        assert row in table
    else:
        assert code == 1 and said["rows"][0]["milliseconds"] is None and "| wrong by 5.0e-02 |" in table


def test_rows_measured_before_a_stop_are_said(monkeypatch, capsys):
    """By Ctrl-C or, from a batch system, SIGTERM."""
    def measure(run):
        if (measured := next(calls)) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return Times(25.0 + measured, 3.0)

    calls, before = itertools.count(), signal.getsignal(signal.SIGTERM)
    cases = [replace(doubling(2.0), peers={}, shape=shape) for shape in ("first", "second")]
    monkeypatch.setattr(command, "all_cases", lambda only: cases)
    monkeypatch.setattr(command, "measure", lambda: H100)
    monkeypatch.setattr(command, "time_cases", lambda cases, ceilings, device, **limits: time_cases(
        cases, ceilings, CPU, measure, **limits))
    for name, value in (("is_available", True), ("get_device_name", "a GPU"), ("get_device_capability", (8, 0))):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    try:
        assert command.main(["--json"]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    said = json.loads(capsys.readouterr().out)
    assert [(row["shape"], row["milliseconds"]) for row in said["rows"]] == [("first", 25.0), ("first", 26.0)]
    assert said["stopped"] and said["not_captured"] is None


def test_gradients_are_those_of_all_leaves():
    x, y = torch.ones(3).requires_grad_(), torch.ones(3)
    result, gradient = forward_and_backward(lambda x, y: x * y * 3, (x, y), [torch.arange(3.0)])
    assert result.tolist() == [3.0] * 3 and gradient.tolist() == [0.0, 3.0, 6.0]
    assert len(forward_and_backward(lambda y: (y, y), (y,))) == 2
    upstream, again = (upstream_gradients([x * y, y, x.bfloat16()]) for _ in range(2))
    assert [gradient.dtype for gradient in upstream] == [torch.float32, torch.bfloat16]
    assert all(map(torch.equal, upstream, again)) and upstream[0].unique().numel() == 3


BROKEN = {
    "router": (moe_cases.router_case(MOE), router, "_backward", lambda right: lambda dgate, *others: right(
        torch.zeros_like(dgate), *others)),
    "gather": (moe_cases.gather_case(MOE), rows, "_sum", lambda right: lambda y, weight, start, row: right(
        y, weight, start, row.flip(0))),
    "experts": (moe_cases.experts_case(MOE), fused_experts, "_backward", lambda right: lambda dy, *others: right(
        dy.flip(0), *others)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_backward_is_found(name, monkeypatch):
    """Gates' gradients left out, others' rows summed, others' gradients taken: with ones all seem right."""
    case, module, function, broken = BROKEN[name]
    monkeypatch.setattr(module, function, broken(getattr(module, function)))
    assert largest_error(case, CPU, num_tokens=16) > 0.1


def test_a_gradient_that_is_missing_is_an_infinite_error():
    assert relative_error(None, torch.zeros(2)) == relative_error(torch.zeros(2), None) == float("inf")
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")
    assert relative_error(torch.zeros(2), torch.zeros(2)) == relative_error(None, None) == 0.0


def test_exponentials_bound_too():
    """Shape of docs/kernels.md: 8 x 2048 tokens, 4096 channels, 16 states, at 16 x 132 x 1.755e9 a second."""
    case = ssm_cases.selective_case(ssm_cases.SELECTIVE[0])
    assert abs(H100.seconds(case.forward) - 8 * 2048 * 4096 * 16 / 3.70656e12) < 1e-9
    assert H100.seconds((Work("bytes", 0, 3e12, 1.0),)) == 1.0


def test_floors_are_the_sum_over_kernels_of_what_bounds_each():
    """Shape B of docs/kernels.md, with 790 TFLOP/s and 3 TB/s: 391 + 268 + 226 microseconds forward, 403 + 268 + 391 +
    226 + 391 backward (up to their rounding)."""
    forward, backward = moe_cases.experts_work(moe_cases.SHAPES[1])
    assert abs(H100.seconds(forward) - 885e-6) < 2e-6 and abs(H100.seconds(backward) - 1680e-6) < 3e-6
