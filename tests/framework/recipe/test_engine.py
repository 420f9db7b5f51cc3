"""What a recipe may ask of DeepSpeed: refused when it is loaded, before a process starts."""

import pytest

from framework.recipe import RecipeError, load_recipe, require_runnable

RECIPE = """
model: {pattern: "(*E)x2", d_model: 32, vocab_size: 64, attention: {num_heads: 2}, moe: {num_experts: 4, top_k: 2}}
data: {corpus: text, batch_size: 8}
training: {steps: 1}
"""
DEEPSPEED = "parallel.engine=deepspeed"


@pytest.fixture
def load(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return lambda overrides: load_recipe(str(tmp_path / "recipe.yaml"), overrides)


@pytest.mark.parametrize("overrides", [
    ["parallel.dp_shard=2"], ["parallel.dp_replicate=2", "parallel.dp_shard=2", "parallel.zero_stage=1"],
    ["parallel.offload=cpu"], ["parallel.zero_stage=2", "training.compile=true"],
])
def test_deepspeed_runs_with_data_parallelism(load, overrides):
    require_runnable(load([DEEPSPEED, *overrides]))


@pytest.mark.parametrize(("overrides", "said"), [
    ([DEEPSPEED, "parallel.tp=2", "parallel.ep=2"],
     "deepspeed does not compose with tp 2, ep 2; allowed: dp_replicate, dp_shard, or engine fsdp"),
    ([DEEPSPEED, "parallel.pp=2"], "pp 2;"), ([DEEPSPEED, "parallel.cp=2"], "cp 2;"),
    ([DEEPSPEED, "parallel.offload=nvme"], "allowed: none, cpu"),
    ([DEEPSPEED, "training.compile=true"], "allowed: false, or zero_stage 1 or 2"),
    (["parallel.zero_stage=1"], "given 1 with engine fsdp; allowed: 3, or engine deepspeed"),
    (["parallel.offload=cpu"], "given cpu with engine fsdp; allowed: none, or engine deepspeed"),
])
def test_what_deepspeed_cannot_do_is_refused_in_a_line(load, overrides, said):
    with pytest.raises(RecipeError) as caught:
        load(overrides)
    assert said in str(caught.value) and "\n" not in str(caught.value)
