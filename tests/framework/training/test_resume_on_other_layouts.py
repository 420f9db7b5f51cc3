"""A checkpoint of any layout goes on under any other, with the losses of one rank that was never stopped."""

import dataclasses

import pytest
import torch

from framework.equivalence import parse_layout, shrink_recipe
from framework.equivalence.random_tokens import RandomData, RandomTokens
from framework.recipe import load_recipe
from framework.training.budget import make_budget
from framework.training.checkpoint import Checkpointer
from framework.training.peers import Peers
from framework.training.preconditions import mesh_sizes
from framework.training.setup import build_model, build_optimizer
from framework.training.signals import StopRequest
from framework.training.trainer import Progress, Trainer
from parallel import Mesh

LAYOUTS = ("dp_shard1", "dp_replicate2xdp_shard2", "ep4", "tp2xep2", "pp2", "cp2", "dp_shard2xtp2xep4",
           "dp_shard2-zero3")
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
SAVED_AFTER, LAST_STEP = 2, 5


def small(layout: str):
    fields = ["model.pattern=*ME", "model.moe.selection_bias_rate=0.01", "model.moe.router=sigmoid"]
    return shrink_recipe(load_recipe("quickstart", fields), parse_layout(layout))


def losses(loaded, dtype: str, folder, last_step: int, forget: str = "") -> tuple[float, ...]:
    """Of the steps from the folder's newest checkpoint to the last, after which there is another.

    forget: the optimizer's tensors whose names end so start anew.
    """
    recipe, computed_in = loaded.recipe, getattr(torch, dtype)
    mesh = Mesh(mesh_sizes(recipe.parallel), "cpu")
    model = build_model(loaded, mesh, torch.device("cpu"), computed_in=computed_in)
    optimizer = build_optimizer(loaded, model)
    data = RandomData(RandomTokens(recipe.data.seq_len, recipe.model.vocab_size, recipe.training.seed))
    trainer = Trainer(recipe, make_budget(recipe.data, recipe.training), mesh, model, optimizer, data)
    checkpointer = Checkpointer(folder, Peers())
    tensors = trainer.engine.tensors()
    known = {name: tensor for name, tensor in tensors.items() if not forget or not name.endswith(forget)}
    manifest = checkpointer.load_newest(known)
    if manifest is not None:
        trainer.engine.load(tensors)
        trainer.progress = Progress(**manifest.progress)
    first_step = 1 if manifest is None else manifest.step + 1
    found = tuple(trainer.step(step, StopRequest()).loss for step in range(first_step, last_step + 1))
    if manifest is None:
        checkpointer.save(last_step, trainer.engine.tensors(), dataclasses.asdict(trainer.progress), background=False)
    return found


def dtype_of(*layouts: str) -> str:
    """DeepSpeed keeps weights in float32."""
    return "float32" if any("zero" in layout for layout in layouts) else "float64"


def run(ranks, layout: str, dtype: str, folder, last_step: int, forget: str = "") -> tuple[float, ...]:
    return ranks.run(parse_layout(layout).num_ranks, losses, small(layout), dtype, folder, last_step, forget)[0]


@pytest.fixture(scope="module")
def undisturbed(ranks, tmp_path_factory) -> dict[str, tuple[float, ...]]:
    """The losses of one rank, by dtype."""
    return {dtype: run(ranks, "dp_shard1", dtype, tmp_path_factory.mktemp(dtype), LAST_STEP) for dtype in TOLERANCE}


@pytest.fixture(scope="module")
def checkpoint(ranks, tmp_path_factory):
    """A folder with the checkpoint of a layout and dtype; one for all who ask."""
    made = {}

    def of(layout: str, dtype: str):
        if (layout, dtype) not in made:
            folder = tmp_path_factory.mktemp("checkpoints")
            run(ranks, layout, dtype, folder, SAVED_AFTER)
            made[layout, dtype] = folder
        return made[layout, dtype]

    return of


def difference(got: tuple[float, ...], expected: tuple[float, ...]) -> float:
    return max(abs(a - b) / b for a, b in zip(got, expected[SAVED_AFTER:], strict=True))


def pairs(full: bool) -> list:
    """Every pair of layouts, or a third of them, each layout with itself included."""
    return [(old, new) for i, old in enumerate(LAYOUTS) for j, new in enumerate(LAYOUTS) if full or (i - j) % 3 == 0]


def check(ranks, checkpoint, undisturbed, old: str, new: str) -> None:
    dtype = dtype_of(old, new)
    got = run(ranks, new, dtype, checkpoint(old, dtype), LAST_STEP)
    assert difference(got, undisturbed[dtype]) < TOLERANCE[dtype]


@pytest.mark.parametrize(("old", "new"), pairs(full=False))
def test_a_checkpoint_goes_on_under_another_layout(ranks, checkpoint, undisturbed, old, new):
    check(ranks, checkpoint, undisturbed, old, new)


@pytest.mark.full
@pytest.mark.parametrize(("old", "new"), [pair for pair in pairs(full=True) if pair not in pairs(full=False)])
def test_every_checkpoint_goes_on_under_every_layout(ranks, checkpoint, undisturbed, old, new):
    check(ranks, checkpoint, undisturbed, old, new)


@pytest.mark.parametrize("forgotten", [".exp_avg", ".exp_avg_sq", ".step"])
def test_a_forgotten_part_of_the_optimizer_would_show(ranks, checkpoint, undisturbed, forgotten):
    folder = checkpoint("tp2xep2", "float64")
    got = run(ranks, "pp2", "float64", folder, LAST_STEP, forgotten)
    assert difference(got, undisturbed["float64"]) > 1e3 * TOLERANCE["float64"]
