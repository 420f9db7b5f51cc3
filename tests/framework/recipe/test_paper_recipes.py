"""The papers' recipes have the papers' sizes: to the digit where those are given, else to their rounding."""

from functools import cache
from pathlib import Path

import pytest

from framework.laws.fine_grained_shape import flops_per_token, total_of_active
from framework.laws.learning_rate import learning_rate
from framework.recipe import Loaded, load_recipe, recipe_names, require_runnable, sizes

RECIPES = Path(__file__).parents[3] / "recipes"
FOLDERS = ("fine_grained_moe", "joint_moe", "mup_moe", "moe_mamba", "upcycling", "hybrid")
NAMES = [name for name in recipe_names() if name.split("/")[0] in FOLDERS]
VOCABULARY = 50257


@cache
def load(name: str, *overrides: str) -> Loaded:
    return load_recipe(name, overrides)


def sizes_of(name: str, *overrides: str) -> dict[str, int]:
    loaded = load(name, *overrides)
    return sizes(loaded.architecture, loaded.recipe.data.seq_len)


def counts(name: str, *overrides: str) -> tuple[int, int]:
    """Total and active parameters without embeddings, routers and norms."""
    found = sizes_of(name, *overrides)
    return found["params_total_non_embedding"], found["params_active_non_embedding"]


def tokens_per_step(name: str) -> int:
    data = load(name).recipe.data
    return data.seq_len * data.batch_size


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_could_be_trained(name):
    require_runnable(load(name))
    text = (RECIPES / f"{name}.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_has_a_readme_and_a_laptop_recipe(folder):
    readme = (RECIPES / folder / "README.md").read_text()
    for heading in ("**Claim", "**Data", "**What we measured", "**What differs"):
        assert heading in readme, heading
    laptop = [load(name).recipe for name in NAMES if name.startswith(f"{folder}/laptop")]
    assert laptop and all(recipe.data.corpus == "python_stdlib" for recipe in laptop)


# Fine-grained law: active parameters as printed, d_model, blocks, heads.
FINE_GRAINED = [
    (3, 256, 4, 4), (7, 384, 4, 6), (13, 512, 4, 8), (25, 512, 8, 8), (49, 640, 10, 10), (85, 768, 12, 12),
]


@pytest.mark.parametrize("rate", [64, 16])
@pytest.mark.parametrize("granularity", [1, 4, 16])
@pytest.mark.parametrize(("millions", "width", "blocks", "heads"), FINE_GRAINED)
def test_fine_grained_counts_over_the_grid(millions, width, blocks, heads, granularity, rate):
    """N = d^2 (8 E + 4) blocks and N_act = 12 d^2 blocks, whatever the granularity."""
    grid = f"model.moe.granularity={granularity}", f"model.moe.expansion_rate={rate}"
    name = f"fine_grained_moe/paper_{millions}m"
    found = sizes_of(name, *grid)
    assert counts(name, *grid) == (width**2 * (8 * rate + 4) * blocks, 12 * width**2 * blocks)
    assert int(found["params_active_non_embedding"] / 1e6) in (millions, millions - 1)
    assert (found["num_experts"], found["top_k"]) == (rate * granularity, granularity)
    assert found["params_router"] == width * rate * granularity * blocks
    assert load(name, *grid).recipe.model.attention.num_heads == heads


@pytest.mark.parametrize("name", ["3m", "6m", "13m", "25m", "49m", "85m"])
def test_dense_baselines_of_the_fine_grained_law(name):
    total, active = counts(f"fine_grained_moe/dense_{name}")
    assert total == active and total == pytest.approx(int(name[:-1]) * 1e6, rel=0.05)
    assert load(f"fine_grained_moe/dense_{name}").recipe.optim == load("fine_grained_moe/base").recipe.optim


def test_fine_grained_range_of_sizes():
    """"129M to 3.7B" in all: the smallest is 129 times 2^20."""
    assert counts("fine_grained_moe/paper_3m")[0] == 129 * 2**20
    assert round(counts("fine_grained_moe/paper_85m")[0] / 1e9, 1) == 3.7


def convention_flops_per_token(found: dict[str, int]) -> int:
    """(12 d^2 c_f + d E G c_r) blocks, c_f = 6 and c_r = 14: what the fine-grained law counts of a recipe."""
    return 6 * found["params_active_non_embedding"] + 14 * found["params_router"]


@pytest.mark.parametrize("granularity", [1, 8, 16])
@pytest.mark.parametrize("size", ["49m", "85m"])
def test_fine_grained_flops_are_those_that_the_law_counts(size, granularity):
    """At these two sizes d_model is 64 blocks, which the law assumes."""
    found = sizes_of(f"fine_grained_moe/paper_{size}", f"model.moe.granularity={granularity}")
    active = found["params_active_non_embedding"]
    assert flops_per_token(active, granularity, 64) == pytest.approx(convention_flops_per_token(found), rel=1e-12)
    assert total_of_active(active, 64) == found["params_total_non_embedding"]


def test_fine_grained_flops_of_a_width_of_the_papers_table():
    """64 x 1B at G 16, 28.94B tokens: 1.93e20 FLOPs. With d_model 64 blocks, 27 blocks are 0.967B active."""
    shape = "model.pattern=(*E)x27", "model.d_model=1728", "model.attention.num_heads=27"
    found = sizes_of("fine_grained_moe/base", *shape, "model.moe.granularity=16")
    scale = 1e9 / found["params_active_non_embedding"]
    # Routing grows as blocks^2, the rest as blocks^3: to the same 1B as in the table.
    body, routing = 6 * found["params_active_non_embedding"] * scale, 14 * found["params_router"] * scale ** (2 / 3)
    assert (body + routing) * 28.94e9 == pytest.approx(1.93e20, rel=0.005)


def test_fine_grained_batches_and_groups():
    recipe = load("fine_grained_moe/paper_3m").recipe
    assert tokens_per_step("fine_grained_moe/paper_3m") == 2**19
    assert recipe.parallel.dp_shard * recipe.data.micro_batch_size == 256
    assert recipe.optim.warmup_steps == round(0.01 * recipe.training.tokens / 2**19)


# Joint law: as printed, in millions; d_model, blocks, heads.
JOINT = {
    "79m": (79, 512, 8, 8), "118m": (118, 640, 10, 10), "169m": (169, 768, 12, 12), "321m": (321, 1024, 16, 16),
    "426m": (426, 1152, 18, 18), "469m": (469, 1280, 16, 10), "683m": (683, 1408, 21, 11), "709m": (709, 1408, 22, 22),
    "1_1b": (1100, 1664, 26, 26), "1_3b": (1300, 1792, 28, 28), "1_6b": (1600, 1920, 30, 30),
    "2_7b": (2700, 2304, 36, 36),
}


@pytest.mark.parametrize("rate", [1, 2, 8, 32])
@pytest.mark.parametrize("size", JOINT)
def test_joint_counts(size, rate):
    """N_total = 2 d V + (4 + 9 E) blocks d^2 and N_act = 2 d V + 13 blocks d^2, embeddings included."""
    printed, width, blocks, heads = JOINT[size]
    name = f"joint_moe/paper_{size}"
    mixture = (f"model.pattern=(*E)x{blocks}",) if size in ("1_6b", "2_7b") else ()
    overrides = *mixture, f"model.moe.expansion_rate={rate}"
    found = sizes_of(name, *overrides)
    left_out = found["params_router"] + found["params_norm"]
    active = 2 * width * VOCABULARY + 13 * blocks * width**2
    assert found["params_active"] - left_out == active
    assert found["params_total"] - left_out == 2 * width * VOCABULARY + (4 + 9 * rate) * blocks * width**2
    digits = 0 if printed < 1000 else -2
    assert round(active / 1e6, digits) == printed
    assert load(name, *overrides).recipe.model.attention.num_heads == heads


@pytest.mark.parametrize("size", ["1_6b", "2_7b"])
def test_joint_dense_counts(size):
    _, width, blocks, _ = JOINT[size]
    assert counts(f"joint_moe/paper_{size}") == (13 * blocks * width**2,) * 2


def test_joint_largest_model_and_the_dense_pattern():
    assert round(sizes_of("joint_moe/paper_321m", "model.moe.expansion_rate=32")["params_total"] / 1e9, 1) == 5.0
    dense = "model.pattern=(*-)x8"
    found = sizes_of("joint_moe/paper_79m", dense)
    assert found["params_active"] == found["params_total"]
    assert found["params_active_non_embedding"] == counts("joint_moe/paper_79m")[1]


@pytest.mark.parametrize(("size", "rates"), {
    "79m": (1.70e-3, 1.01e-3, 7.1e-4), "169m": (9.1e-4, 5.4e-4, 3.8e-4), "321m": (5.4e-4, 3.2e-4, 2.3e-4),
    "1_1b": (2.0e-4, 1.2e-4, 8.4e-5), "2_7b": (9.6e-5, 5.7e-5, 4.0e-5),
}.items())
def test_joint_learning_rates_of_the_law(size, rates):
    blocks = JOINT[size][2]
    for rate, expected in zip((1, 8, 32), rates, strict=True):
        overrides = f"model.pattern=(*E)x{blocks}", f"model.moe.expansion_rate={rate}"
        found = load(f"joint_moe/paper_{size}", *overrides).recipe.optim.lr
        assert found == pytest.approx(expected, rel=0.02)
        num_params = sizes_of(f"joint_moe/paper_{size}", *overrides)["params_active"]
        assert found == pytest.approx(learning_rate(num_params, rate), rel=1e-12)


def test_joint_ramp_warm_up_and_slides():
    data, optim = load("joint_moe/paper_79m").recipe.data, load("joint_moe/paper_79m").recipe.optim
    ramp = [size * data.seq_len for size in (*data.batch_ramp.values(), data.batch_size)]
    assert (ramp, list(data.batch_ramp)) == ([2**16, 2**17, 2**18], [500_000_000, 1_000_000_000])
    assert (optim.warmup_steps - 1) * ramp[0] < 130e6 <= optim.warmup_steps * ramp[0]
    assert load("joint_moe/paper_1_1b").recipe.training.slides[-1] == 64_000_000_000


MOE_MAMBA = {
    "paper_25m": (542_040_064, 26_140_672), "mamba_25m": (27_115_520, 27_115_520),
    "transformer_25m": (25_165_824, 25_165_824), "transformer_moe_25m": (545_259_520, 25_165_824),
    "mamba_100m": (120_668_160, 120_668_160), "ratio_6_6": (416_210_944, 26_140_672),
    "parallel": (416_210_944, 26_140_672),
}


@pytest.mark.parametrize(("name", "expected"), MOE_MAMBA.items())
def test_moe_mamba_counts(name, expected):
    assert counts(f"moe_mamba/{name}") == expected


@pytest.mark.parametrize(("name", "total", "active"), [
    ("paper_25m", 542, 26), ("transformer_moe_25m", 545, 25), ("paper_100m", 2439, 117),
    ("transformer_moe_100m", 2454, 114), ("mamba_100m", 121, 121), ("mamba_25m", 27, 27), ("transformer_25m", 25, 25),
])
def test_moe_mamba_sizes_as_the_paper_prints_them(name, total, active):
    """In millions, rounded; the paper's 114 of Transformer-MoE 100M holds the routers."""
    found = sizes_of(f"moe_mamba/{name}")
    routers = found["params_router"] if name == "transformer_moe_100m" else 0
    assert round(found["params_total_non_embedding"] / 1e6) == total
    assert round((found["params_active_non_embedding"] + routers) / 1e6) == active


def test_moe_mamba_routers():
    assert sizes_of("moe_mamba/paper_25m")["params_router"] == 172_032


@pytest.mark.parametrize(("num_experts", "total"), [
    (1, 26_140_672), (4, 63_889_408), (8, 114_221_056), (16, 214_884_352), (32, 416_210_944),
])
def test_moe_mamba_expert_ablation(num_experts, total):
    assert counts("moe_mamba/ratio_6_6", f"model.moe.expansion_rate={num_experts}") == (total, 26_140_672)


@pytest.mark.parametrize(("name", "inner", "d_expert", "num_experts"), [
    ("2_10", 341, 2560, 19), ("4_8", 682, 2048, 24), ("6_6", 1024, 1536, 32), ("8_4", 1365, 1024, 48),
    ("10_2", 1706, 512, 96),
])
def test_moe_mamba_ratio_ablation(name, inner, d_expert, num_experts):
    """The expert counts of the paper's table make 403M to 425M parameters, not the 542M of its caption."""
    found = sizes_of(f"moe_mamba/ratio_{name}")
    assert (found["d_expert"], found["num_experts"]) == (d_expert, num_experts)
    recipe = load(f"moe_mamba/ratio_{name}").recipe
    assert recipe.model.mamba.expand * 512 == inner
    assert 402.9e6 < found["params_total_non_embedding"] < 425.3e6
    assert recipe.training.steps * tokens_per_step(f"moe_mamba/ratio_{name}") == pytest.approx(1e9, rel=0.02)


@pytest.mark.parametrize(("name", "steps", "tokens", "lr"), [
    ("paper_25m", 150_000, 9.83e9, 5e-4), ("mamba_25m", 150_000, 9.83e9, 1e-3),
    ("transformer_25m", 150_000, 9.83e9, 5e-4), ("transformer_moe_25m", 150_000, 9.83e9, 5e-4),
    ("paper_100m", 30_000, 31.5e9, 5e-4),
    ("mamba_100m", 30_000, 31.5e9, 1e-3), ("transformer_moe_100m", 30_000, 31.5e9, 2.5e-4),
])
def test_moe_mamba_lengths_and_rates(name, steps, tokens, lr):
    recipe = load(f"moe_mamba/{name}").recipe
    assert (recipe.training.steps, recipe.optim.lr, recipe.optim.warmup_steps) == (steps, lr, steps // 100)
    assert steps * tokens_per_step(f"moe_mamba/{name}") == pytest.approx(tokens, rel=2e-3)
    assert recipe.model.vocab_size == VOCABULARY


def test_mup_runs_are_as_long_as_the_codes():
    recipe = load("mup_moe/paper_width").recipe
    assert recipe.training.steps * tokens_per_step("mup_moe/paper_width") == pytest.approx(0.2e9, rel=0.03)
    assert (sizes_of("mup_moe/paper_width")["num_experts"], sizes_of("mup_moe/paper_width")["d_expert"]) == (8, 3 * 512)


def test_wide_experts_grow_as_in_their_paper():
    """Of 8 times the base: 8 times the experts and heads, with as wide experts and as many of them a token."""
    recipe, found = load("mup_moe/paper_wide_experts").recipe, sizes_of("mup_moe/paper_wide_experts")
    base = recipe.parametrization.base_model
    growth = recipe.model.d_model / recipe.parametrization.base_d_model
    assert growth == 8 == found["num_experts"] / base["moe"]["num_experts"]
    assert growth == recipe.model.attention.num_heads / base["attention"]["num_heads"]
    assert recipe.model.moe.d_expert and recipe.model.moe.top_k


def test_nvidia_parent():
    """Nemotron-4 15B: 12.5B without embeddings; its embeddings' 3.146B are 3.2B in public descriptions."""
    found = sizes_of("upcycling/nvidia_dense")
    assert round(found["params_total_non_embedding"] / 1e9, 1) == 12.5
    assert found["params_embedding"] == 2 * 256_000 * 6144


@pytest.mark.parametrize(("dense", "target", "rate", "active"), [
    ("nvidia_dense", "nvidia_e8g8t8", 8, 1), ("nvidia_dense", "nvidia_e8g1t2", 8, 2),
    ("scaling_1b", "scaling_8x1b", 8, 2), ("drop_152m", "drop_8x152m", 8, 2),
    ("drop_1_5b", "drop_8x1_5b", 8, 2), ("drop_3_7b", "drop_8x3_7b", 8, 2),
    ("laptop_dense", "laptop_copy", 8, 2), ("laptop_dense", "laptop_granular", 8, 1),
])
def test_targets_are_their_parents_with_experts(dense, target, rate, active):
    """Every FFN becomes `rate` FFNs of experts, of which `active` are visited; nothing else changes."""
    parent, child = load(f"upcycling/{dense}").recipe, load(f"upcycling/{target}").recipe
    for section in ("attention", "multipliers"):
        assert getattr(parent.model, section) == getattr(child.model, section)
    for field in ("d_model", "vocab_size", "norm", "norm_eps", "tie_embeddings"):
        assert getattr(parent.model, field) == getattr(child.model, field)
    assert child.model.pattern == parent.model.pattern.replace("-", "E")
    assert child.model.moe.activation == parent.model.ffn.activation
    assert child.data.corpus == parent.data.corpus
    found = sizes_of(f"upcycling/{dense}")
    width, blocks = parent.model.d_model, found["num_layers"] // 2
    matrices = 3 if parent.model.ffn.activation == "swiglu" else 2
    ffn = matrices * width * found["d_ff"] * blocks
    dense_count = found["params_total_non_embedding"]
    assert counts(f"upcycling/{target}") == (dense_count + (rate - 1) * ffn, dense_count + (active - 1) * ffn)


def test_drop_upcycling_sizes_and_tokens():
    """Parents of 152M, 1.5B (1.56B) and 3.7B (3.78B), embeddings included; 5.9B active of 8x3.7B; 5.0e11 tokens."""
    totals = [sizes_of(f"upcycling/drop_{size}")["params_total"] for size in ("152m", "1_5b", "3_7b")]
    assert totals == pytest.approx([152.3e6, 1.558e9, 3.783e9], rel=1e-3)
    assert round(sizes_of("upcycling/drop_8x3_7b")["params_active"] / 1e9, 1) == 5.9
    for name in ("drop_8x152m", "drop_8x1_5b", "drop_8x3_7b"):
        steps = load(f"upcycling/{name}").recipe.training.steps
        assert steps * tokens_per_step(f"upcycling/{name}") == pytest.approx(5.0e11, rel=1e-4)


def test_hybrid_of_a_cluster():
    found = sizes_of("hybrid/cluster_7b")
    assert found["params_total"] == pytest.approx(6.7e9, rel=0.01)
    assert found["params_active"] == pytest.approx(1.05e9, rel=0.01)


def test_hybrid_of_the_paper():
    """31.6B parameters, 3.6B active, 3.2B without the embedding (arXiv 2512.20848)."""
    found, model = sizes_of("hybrid/paper"), load("hybrid/paper").recipe.model
    assert round(found["params_total"] / 1e8) == 316 and round(found["params_active"] / 1e8) == 36
    assert round((found["params_active"] - model.vocab_size * model.d_model) / 1e8) == 32
    assert (model.pattern.count("M"), model.pattern.count("E"), model.pattern.count("*")) == (23, 23, 6)
