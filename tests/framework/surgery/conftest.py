"""A dense run, and upcycling it on a pool's ranks."""

from pathlib import Path

import pytest

from tests.helpers.runs import run, write_recipe
from tests.helpers.upcycling import num_ranks, target, upcycle_on_rank

MODEL = {"pattern": "(*-)x2", "ffn": {"d_ff": 64}, "moe": {"granularity": 4, "num_experts": 12}}


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    """Of the dense run; `target` makes shards of it."""
    return write_recipe(tmp_path_factory.mktemp("upcycling"), model=MODEL, data={"seq_len": 32, "micro_batch_size": 2},
                        optim={"relative_lr": {}}, training={"steps": 3, "eval_every": None},
                        checkpoint={"every": None})


@pytest.fixture(scope="session")
def dense(ranks, recipe) -> Path:
    """Trained on two ranks."""
    path = recipe.parent / "dense"
    assert run(ranks, recipe, path, "parallel.dp_shard=2") == 0
    return path


@pytest.fixture(scope="session")
def upcycle(ranks, recipe, dense):
    """Upcycle on a layout into a new folder: (the folder, the report).

    before: a change to make on the ranks first, (function, *args).
    """

    def command(name: str, layout: str, *fields: str, before: tuple | None = None, **options) -> tuple[Path, dict]:
        path = recipe.parent / "new" / name
        reports = ranks.run(num_ranks(layout), upcycle_on_rank, dense, recipe, target(layout, *fields), path, options,
                            before)
        return path, reports[0]

    return command
