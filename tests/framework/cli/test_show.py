"""`upmix show` and `upmix recipes` on good recipes, and the command line around them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from framework.recipe import recipe_names


def test_json_has_the_fixed_names(upmix):
    code, out, err = upmix("show", "quickstart", "model.moe.granularity=2", "--roles", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "") and set(found) == {"recipe", "sizes", "roles"}
    sizes, moe = found["sizes"], found["recipe"]["model"]["moe"]
    assert sizes["num_experts"] == moe["expansion_rate"] * 2 and sizes["top_k"] == 2
    assert set(sizes) >= {
        "num_experts", "top_k", "d_expert", "params_total", "params_active", "params_embedding", "params_router",
        "params_norm", "params_total_non_embedding", "params_active_non_embedding", "flops_per_token",
    }
    assert sum(row["size"] for row in found["roles"]) == sizes["params_total"]
    assert "expert_up" in {row["role"] for row in found["roles"]}


def test_json_without_roles(upmix):
    assert set(json.loads(upmix("show", "quickstart", "--json")[1])) == {"recipe", "sizes"}


def test_text_says_where_each_value_came_from(upmix):
    code, out, _ = upmix("show", "base/moe", "model.moe.granularity=2", "--roles")
    lines = {tuple(line.split()) for line in out.splitlines()}
    assert code == 0
    assert ("granularity:", "2", "#", "command", "line") in lines
    assert ("num_experts:", "16", "#", "derived") in lines and ("qkv_bias:", "false", "#", "default") in lines
    assert any(line[:4] == ("d_model:", "512", "#", "recipes/base/transformer.yaml:4") for line in lines)
    assert ("layers", "(attention,", "MoE)", "x8") in lines and ("sublayers", "attention", "x8,", "MoE", "x8") in lines
    assert ("expert_up", "16x768x512", "8", "50,331,648", "0.0442", "1", "0.001", "0", "0.1",
            "truncated_normal_fixed") in lines


def test_replaced_values_are_told(upmix):
    out = upmix("show", "base/moe", "model.moe.top_k=2")[1]
    assert "replaced by model.moe.top_k, command line" in out
    assert "kept from model.moe.granularity, recipes/base/moe.yaml:7" in out


def test_every_recipe_is_listed_and_shown(upmix):
    listed = upmix("recipes")[1]
    rows = json.loads(upmix("recipes", "--json")[1])["recipes"]
    assert [row["name"] for row in rows] == recipe_names()
    for row in rows:
        assert row["description"] and row["description"] in listed
        assert upmix("show", row["name"])[0] == 0


def test_help_and_version(upmix):
    code, out, _ = upmix()
    assert code == 0 and "show" in out and "recipes" in out
    assert upmix("--version")[:2] == (0, "0.1.0\n")


@pytest.mark.parametrize("arguments", [
    ("nothing",), ("--nothing",), ("show",), ("show", "quickstart", "--nothing"), ("recipes", "more"),
])
def test_wrong_use_is_one_line(arguments, upmix):
    code, out, err = upmix(*arguments)
    assert code == 2 and out == "" and err.startswith("upmix: ") and err.count("\n") == 1


def test_a_bug_is_a_traceback_and_exit_code_1():
    code = "import framework.recipe as r; r.load_recipe = None\nfrom framework.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "show", "quickstart"], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_show_imports_nothing_heavy():
    code = ("import sys; from framework.cli import main\ntry: main()\nexcept SystemExit: pass\n"
            "assert not {'torch', 'numpy', 'transformers', 'megatron', 'matplotlib'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code, "show", "quickstart", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)


def test_recipes_are_found_from_anywhere(tmp_path):
    command = [str(Path(sys.executable).with_name("upmix")), "show", "quickstart", "--json"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
