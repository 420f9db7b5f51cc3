"""Every recipe that ships, on every cluster file that ships: a real controller would take it."""

import pytest

from framework.errors import UserError
from framework.recipe import load_recipe, recipe_names
from slurm import submit
from slurm.cluster import cluster_names, load_cluster
from slurm.host import Host
from slurm.plan import plan_run
from slurm.script import Places

pytestmark = pytest.mark.slurm
BASES = ("base/", "bench/")
"""What is there to be extended or measured, of no length of its own. So are sets of rates."""


@pytest.mark.parametrize("name", cluster_names())
def test_sbatch_would_take_every_recipe(slurm, monkeypatch, name: str) -> None:
    for variable, value in slurm.environment.items():
        monkeypatch.setenv(variable, value)
    cluster = load_cluster(name)
    places = Places("/w", "/w/runs", "/w/runs/x/job", "/w/runs/.code/0")
    scripts, left_out = {}, []
    for recipe in recipe_names():
        try:
            submission = plan_run(load_recipe(recipe), "run", cluster.gpus_per_node)
        except UserError:
            left_out.append(recipe)
            continue
        scripts |= {f"{recipe}/{file}": text for file, text in submit.scripts(submission, cluster, places).items()}
    answers = submit.test_only(Host(), list(scripts.values()))
    assert len(answers) == len(scripts) > 60
    assert all("to start at" in answer for answer in answers)
    assert [recipe for recipe in left_out if not recipe.startswith(BASES)] == ["rlrs/dense_rates", "rlrs/moe_rates"]


def test_what_the_nodes_do_not_have_is_refused(slurm, monkeypatch) -> None:
    for variable, value in slurm.environment.items():
        monkeypatch.setenv(variable, value)
    cluster = load_cluster("example_h100").model_copy(update={"gpu_type": "b200"})
    job = plan_run(load_recipe("quickstart"), "run", 8)
    with pytest.raises(UserError, match="sbatch --test-only: .*allowed: what the cluster's partitions"):
        submit.test_only(Host(), submit.scripts(job, cluster, Places("/w", "/w", "/w", "/w")).values())

