"""`upmix plan`."""

import json
import subprocess
import sys

from framework.recipe import load_recipe
from framework.recipe.files import RECIPES
from tests.helpers.disk import full_disk


def test_json_is_one_object_with_memory_traffic_and_time(upmix):
    code, out, err = upmix("plan", "hybrid/cluster_7b", "--on", "32xh100", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert set(found) == {"cluster", "layout", "fits", "needed", "fullest", "memory", "traffic", "timing",
                          "assumptions"}
    assert found["layout"]["ep"] == 8 and [row["axis"] for row in found["traffic"]] == ["dp", "ep", "tp", "cp", "pp"]
    assert found["fits"] == (found["needed"] <= found["cluster"]["memory"])
    assert found["assumptions"]


def test_text_names_the_parts(upmix):
    code, out, _ = upmix("plan", "hybrid/laptop", "parallel.dp_shard=1", "parallel.ep=1", "parallel.pp=2",
                         "data.micro_batch_size=4", "--on", "2xh100")
    assert code == 0
    for word in ("pp rank 0", "pp rank 1", "activations", "fits:", "NVLink, GB", "step, seconds", "MFU", "GPU-hours",
                 "assumed: computes at 20%"):
        assert word in out


def test_mistakes_cost_a_line(upmix):
    for words, said in (
        (("quickstart",), "--on: not given"),
        (("quickstart", "--on", "3xh100"), "= 1 * 2 * 1 * 1 * 1 = 2 ranks"),
        (("quickstart", "--on", "2xabacus"), "no such cluster"),
        (("quickstart", "--on", "2xh100", "--write", "x.yaml"), "given without --search"),
        (("quickstart", "--on", "2xh100", "--search", "--write", "x.txt"), "no name of a recipe"),
        (("quickstart", "--on", "2xh100", "--search", "--write", RECIPES / "quickstart.yaml"), "is there already"),
        (("quickstart", "--on", "2xh100", "--rank", "1"), "given without --dry-run"),
        (("quickstart", "--on", "2xh100", "--search", "--dry-run"), "given together"),
        (("quickstart", "--dry-run", "--rank", "2"), "no such rank; allowed: 0 to 1"),
        (("quickstart", "parallel.dp_shard=8192", "data.batch_size=8192", "--dry-run"), "allowed: up to 4096"),
    ):
        code, out, err = upmix("plan", *words)
        assert code == 2 and said in err and not out and len(err.splitlines()) == 1, err


def test_search_prints_ten_and_writes_a_recipe(upmix, tmp_path):
    path = tmp_path / "best.yaml"
    code, out, _ = upmix("plan", "quickstart", "--on", "4xh100", "--search", "--write", path)
    assert code == 0 and len(out.splitlines()) == 12 and f"wrote {path}" in out
    parallel = load_recipe(str(path)).recipe.parallel
    assert parallel.dp_replicate * parallel.dp_shard * parallel.cp * parallel.tp * parallel.pp == 4
    found = json.loads(upmix("plan", "quickstart", "--on", "4xh100", "--search", "--json")[1])
    assert len(found["best"]) == 10 and found["num_fitting"] >= 10 and found["best"][0]["reasons"]


def test_a_recipe_that_the_disk_has_no_room_for_is_told_and_not_begun(upmix, tmp_path):
    with full_disk(0):
        code, _, err = upmix("plan", "quickstart", "--on", "2xh100", "--search", "--write", tmp_path / "best.yaml")
    assert code == 2 and err.count("\n") == 1 and "allowed: more room" in err
    assert not list(tmp_path.iterdir())


def test_a_model_beyond_all_machines_does_not_fit(upmix):
    code, out, _ = upmix("plan", "quickstart", "model.d_model=1000000000", "--on", "2xh100")
    assert code == 0 and "does not fit" in out


def test_dry_run_in_a_large_world(upmix):
    code, out, err = upmix("plan", "quickstart", "parallel.dp_shard=64", "data.batch_size=64", "parallel.ep=8",
                           "--dry-run", "--rank", "37", "--json")
    found = json.loads(out)["dry_run"]
    assert (code, err) == (0, "") and (found["rank"], found["world"]) == (37, 64)
    assert 0 < found["parameters"] < found["peak"] and found["sent"]["dp"] > 0 < found["sent"]["ep"]
    assert found["optimizer"] > 2 * found["parameters"] - 1 and found["sent"]["tp"] == 0


def test_a_plan_needs_no_pytorch():
    code = ("import sys; sys.argv = ['upmix', 'plan', 'quickstart', '--on', '2xh100']\n"
            "from framework.cli import main\n"
            "try: main()\nexcept SystemExit: pass\n"
            "sys.exit('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "fits" in done.stdout
