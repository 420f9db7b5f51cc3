"""Formulas of memory and traffic against a real step of one rank, on eight layouts of toy size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from framework.plan.memory import memory_on
from framework.plan.outline import Outline
from framework.plan.traffic import AXES, sent_on
from framework.recipe import load_recipe

SHORT, MIXED = 'model.pattern="(*E)x2"', "model.pattern=M*E"
ONE = ("parallel.dp_shard=1", "parallel.ep=1")
BF16, RECOMPUTED, SELECTIVE = "training.dtype=bfloat16", "training.recompute=full", "training.recompute=selective"

LAYOUTS = {
    "dp_shard2xep2": ("quickstart", (SHORT,), 0),
    "tp2xep2": ("quickstart", (SHORT, "parallel.dp_shard=1", "parallel.tp=2"), 1),
    "dp_shard2xcp2xep2": ("hybrid/laptop", (MIXED, "parallel.cp=2"), 0),
    "dp_shard2xtp2xep2": ("hybrid/laptop", (MIXED, "parallel.tp=2", BF16), 3),
    "dp_shard2-full": ("hybrid/laptop", (MIXED, "parallel.ep=1", RECOMPUTED), 1),
    "dp_replicate2xdp_shard2xep2-selective": (
        "quickstart", (SHORT, "parallel.dp_replicate=2", "data.micro_batch_size=2", "parallel.dedup_dispatch=true",
                       SELECTIVE, BF16), 0),
    "dp_shard2xep2-mamba1": (
        "moe_mamba/laptop", ("model.pattern=mE", "parallel.dp_shard=2", "parallel.ep=2", BF16), 0),
    "pp2": ("hybrid/laptop", (*ONE, "parallel.pp=2", "data.micro_batch_size=4"), 0),
}
FURTHER = {
    "last of pp2": (*LAYOUTS["pp2"][:2], 1),
    "pp2-interleaved": ("quickstart", (*ONE, "parallel.pp=2", "data.micro_batch_size=2",
                                       "parallel.pp_schedule=interleaved"), 0),
}


@pytest.fixture(scope="module")
def rehearsals() -> dict[str, dict]:
    cases = LAYOUTS | FURTHER
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("measured.py")], input=json.dumps(list(cases.values())), text=True,
        capture_output=True, timeout=280, env=environment | {"PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout), strict=True))


def outline(name: str) -> tuple[Outline, int]:
    """And the rank of pp that is rehearsed."""
    recipe, overrides, rank = (LAYOUTS | FURTHER)[name]
    found = Outline.of(load_recipe(recipe, overrides))
    return found, rank // (found.sizes.world // found.sizes.pp)


@pytest.mark.parametrize("name", LAYOUTS | FURTHER)
def test_memory_is_within_five_percent_of_a_real_step(rehearsals, name):
    real, planned = rehearsals[name], memory_on(*outline(name))
    assert (planned.parameters, planned.gradients) == (real["parameters"], real["gradients"])
    assert planned.optimizer == pytest.approx(real["optimizer"], rel=1e-4)  # steps' counters beside the moments
    # Five percent would let one of a layer's many tensors be forgotten.
    within = 0.02 if name in LAYOUTS else 0.05
    assert planned.peak == pytest.approx(real["peak"], rel=within), f"{name}: {planned.peak / real['peak']:.3f}"


@pytest.mark.parametrize("name", LAYOUTS | FURTHER)
def test_traffic_is_within_five_percent_of_a_real_step(rehearsals, name):
    sent = sent_on(*outline(name))
    for axis in AXES:
        real = rehearsals[name]["sent"][axis]
        # Left out are numbers of a few bytes a token.
        assert sent[axis] == pytest.approx(real, rel=0.05, abs=20e3), f"{axis}: {sent[axis]:.0f} of {real:.0f}"


def test_the_peak_follows_from_its_parts():
    for name in LAYOUTS:
        memory = memory_on(*outline(name))
        assert memory.peak == (memory.parameters + memory.optimizer + memory.partial + memory.activations
                               + memory.gathered + memory.working + memory.pipeline)


def test_recomputation_keeps_less_and_shards_hold_less():
    peaks = [memory_on(Outline.of(load_recipe("hybrid/laptop", [f"training.recompute={kind}"])), 0).activations
             for kind in ("none", "selective", "full")]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] > 2 * peaks[2]
    held = [memory_on(Outline.of(load_recipe("hybrid/laptop", [f"parallel.dp_shard={ranks}", f"parallel.ep={ranks}"])),
                      0).parameters for ranks in (1, 2, 4)]
    assert held[1] == pytest.approx(held[0] / 2, rel=0.01) and held[2] == pytest.approx(held[0] / 4, rel=0.01)
