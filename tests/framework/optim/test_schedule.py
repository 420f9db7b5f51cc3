"""Schedules against their closed forms and torch's own schedulers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framework.optim import learning_rate
from framework.recipe.schema import Optim

settings = st.builds(
    Optim, lr=st.floats(1e-5, 1.0), schedule=st.sampled_from(["cosine", "trapezoid", "constant"]),
    warmup_steps=st.integers(1, 20), decay_fraction=st.floats(0, 1), final_lr_fraction=st.floats(0, 1),
)


def rates(optim, steps, **factors):
    return [learning_rate(optim, step, steps, **factors) for step in range(1, steps + 1)]


def test_cosine_equals_torchs():
    optim = Optim(lr=0.3, schedule="cosine", final_lr_fraction=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.03)
    for ours in rates(optim, 50):
        optimizer.step()
        theirs.step()
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_warm_up_is_linear_and_then_the_peak_holds():
    optim = Optim(lr=2.0, schedule="trapezoid", warmup_steps=4, decay_fraction=0.4, final_lr_fraction=0.5)
    assert rates(optim, 10) == pytest.approx([0.5, 1.0, 1.5, 2, 2, 2, 1.75, 1.5, 1.25, 1.0])


def test_constant_ignores_the_final_rate():
    assert rates(Optim(lr=2.0, schedule="constant", warmup_steps=2), 5) == [1.0, 2.0, 2.0, 2.0, 2.0]


@given(settings, st.integers(21, 60))
def test_shape_of_every_schedule(optim, steps):
    values = rates(optim, steps)
    warm = optim.warmup_steps
    assert values[warm - 1] == pytest.approx(optim.lr)
    assert all(a <= b * (1 + 1e-12) for a, b in zip(values[: warm - 1], values[1:warm], strict=True))
    assert all(a >= b * (1 - 1e-12) for a, b in zip(values[warm - 1 : -1], values[warm:], strict=True))
    if optim.schedule == "cosine":
        assert values[-1] == pytest.approx(optim.lr * optim.final_lr_fraction, abs=1e-15)


@given(settings, st.integers(21, 60), st.floats(0.1, 10), st.floats(0.1, 10))
def test_relative_rates_scale_peak_and_final_rate_on_their_own(optim, steps, start, end):
    values = rates(optim, steps, start=start, end=end)
    assert values[optim.warmup_steps - 1] == pytest.approx(optim.lr * start)
    if optim.schedule == "cosine":
        assert values[-1] == pytest.approx(optim.lr * optim.final_lr_fraction * end, abs=1e-15)
        middle = (optim.warmup_steps + steps) / 2
        if middle.is_integer():
            expected = (optim.lr * start + optim.lr * optim.final_lr_fraction * end) / 2
            assert values[int(middle) - 1] == pytest.approx(expected)
