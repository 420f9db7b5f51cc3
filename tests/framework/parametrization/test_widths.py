"""Width parametrizations against the tables of the papers, and as functions of a model."""

import pytest
import torch

from framework.model import Context, build_language_model
from framework.optim import build_adamw, set_learning_rates
from framework.parametrization import STANDARD, initialize, widths
from framework.parametrization.roles import declarations
from framework.parametrization.widths import WidthClass
from framework.recipe import RecipeError, load_recipe
from framework.recipe.parameters import family_of

BASE = """
model:
  pattern: "*EM-mE"
  d_model: 128
  vocab_size: 61
  attention: {num_heads: 4}
  ffn: {multiplier: 2}
  moe: {expansion_rate: 4, granularity: 2, num_shared_experts: 1, shared_expert_router: true}
  mamba: {head_dim: 16, d_state: 8}
data: {corpus: none, seq_len: 32, batch_size: 4}
optim: {lr: 0.01, final_lr_fraction: 0.1, weight_decay: 0.1}
training: {steps: 10}
parametrization: {kind: mup, base_d_model: 32}
"""


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    return lambda *overrides: load_recipe(str(path), overrides)


def by_role(loaded):
    rules = widths(loaded.recipe, loaded.architecture)
    with torch.device("meta"):
        model = build_language_model(loaded.architecture)
    return {(str(declared.role), name.rpartition("block.")[2]): rules.rule(name)
            for name, _, _, declared in declarations(model)}


def test_the_table_of_tensor_programs_v_and_of_experts(load):
    """Four times as wide: the columns of arXiv 2203.03466, Table 8, and of 2508.09752 for router and experts."""
    hidden, output, vector = (0.5, 1.0, 0.25), (1.0, 0.25, 1.0), (1.0, 1.0, 1.0)
    expected = dict.fromkeys([
        "attention_q", "attention_k", "attention_v", "attention_out", "ffn_gate", "ffn_up", "ffn_down", "expert_gate",
        "expert_up", "expert_down", "shared_expert_gate", "shared_expert_up", "shared_expert_down", "ssm_z", "ssm_x",
        "ssm_dt", "ssm_B", "ssm_C", "ssm_out"], hidden)
    expected |= dict.fromkeys(["router", "shared_expert_router", "unembedding"], output)
    expected |= dict.fromkeys(["embedding", "norm", "bias", "ssm_A", "ssm_D", "ssm_conv"], vector)
    found = by_role(load())
    assert {role for role, _ in found} == set(expected)
    for (role, name), rule in found.items():
        assert (rule.std_factor, rule.multiplier, rule.lr_factor) == expected[role], (role, name)


def test_the_heuristic_changes_experts_alone(load):
    changed = {role for (role, _), rule in by_role(load("parametrization.kind=simple_p")).items() if rule.lr_factor < 1}
    assert changed == {"expert_gate", "expert_up", "expert_down"}
    assert widths(load("parametrization.kind=simple_p").recipe, load().architecture).attention == {}


@pytest.mark.parametrize(("overrides", "up", "down", "router"), [
    (["model.moe={num_experts: 8, top_k: 2, d_expert: 32}"], "output", "input", "output"),
    (["model.moe={num_experts: 32, top_k: 2, d_expert: 32}", "parametrization.base_model={moe: {num_experts: 8}}"],
     "hidden", "input", "hidden"),
    (["model.moe={num_experts: 32, top_k: 2, d_expert: 128}",
      "parametrization.base_model={moe: {num_experts: 8, d_expert: 32}}"], "hidden", "hidden", "hidden"),
])
def test_which_dims_grow_decides_the_class_of_experts_and_router(load, overrides, up, down, router):
    """A fixed d_expert makes expert_down like a vector (arXiv 2608.20061), growing numbers make a router hidden."""
    classes = {role: str(rule.width_class) for (role, _), rule in by_role(load(*overrides)).items()}
    assert (classes["expert_up"], classes["expert_down"], classes["router"]) == (up, down, router)


def test_wider_experts_alone_need_no_factor_on_their_product(load):
    """d_expert grows, d_model does not: what Table 8 does by a factor, Table 3 does by initial values and rates."""
    loaded = load("parametrization.base_d_model=128", "parametrization.base_model={moe: {d_expert: 32, top_k: 2}}")
    rules = {name: rule for (_, name), rule in by_role(loaded).items()}
    down, shared = rules["experts.down"], rules["shared.down.weight"]
    assert (down.std_factor, down.multiplier, down.lr_factor) == (0.25, 1.0, 0.25)
    assert (shared.std_factor, shared.multiplier, shared.lr_factor) == (1.0, 0.25, 1.0)
    assert {down.width_class, shared.width_class} == {WidthClass.OUTPUT}


def test_at_base_width_everything_is_standard(load):
    loaded = load("model.d_model=32")
    rules = widths(loaded.recipe, loaded.architecture)
    for name, rule in rules.rules.items():
        assert (rule.std_factor, rule.multiplier, rule.lr_factor, rule.growth) == (1.0, 1.0, 1.0, 1.0), name
    assert set(rules.attention.values()) == {1.0}
    tokens = torch.randint(0, 61, (2, 16))
    logits = [logits_of(loaded, chosen, tokens) for chosen in (rules, STANDARD)]
    assert torch.equal(*logits)


def logits_of(loaded, rules, tokens):
    model = build_language_model(loaded.architecture, rules)
    initialize(model, loaded.recipe.parametrization.init, 0, rules)
    with torch.no_grad():
        return model.eval()(tokens, Context())


def test_products_attention_and_ties_are_scaled_in_the_model(load):
    loaded = load("model.tie_embeddings=true", "model.multipliers={logits: 3.0}")
    rules = widths(loaded.recipe, loaded.architecture)
    model = build_language_model(loaded.architecture, rules)
    assert model.unembedding.multiplier == pytest.approx(3.0 / 4)
    assert model.layers["0"].block.scale == pytest.approx(8**0.5 / 32)  # heads of 32 / 4 at base width
    assert model.layers["1"].block.router.multiplier == 0.25
    assert model.layers["2"].block.B.multiplier == 1.0
    initialize(model, loaded.recipe.parametrization.init, 0, rules)
    base = load("model.tie_embeddings=true", "model.d_model=32")
    narrow = build_language_model(base.architecture)
    initialize(narrow, base.recipe.parametrization.init, 0)
    wide_std, narrow_std = (each.embedding.weight.std().item() for each in (model, narrow))
    assert wide_std == pytest.approx(narrow_std, rel=0.05)


@pytest.mark.parametrize("kind", ["rms", "experts"])
def test_a_multiplier_scales_the_product_and_not_the_bias(load, kind):
    """The module with weights divided by the factor gives what the factor gives."""
    if kind == "rms":
        from framework.model.linear import Linear
        from framework.parametrization.roles import Role

        module, x = Linear(8, 4, Role.SSM_B, bias=True), torch.randn(3, 8)
        torch.nn.init.normal_(module.weight)
        torch.nn.init.normal_(module.bias)
        calls = lambda: module(x)  # noqa: E731
        weights = [module.weight]
    else:
        loaded = load("model.moe={num_experts: 8, top_k: 2, d_expert: 32}")
        model = build_language_model(loaded.architecture)
        initialize(model, loaded.recipe.parametrization.init, 0)
        block, x = model.layers["1"].block.eval(), torch.randn(2, 5, 128)
        module, weights = block.experts, [block.experts.up, block.experts.gate]
        calls = lambda: block(x, Context())  # noqa: E731
    module.multiplier = 0.25
    with torch.no_grad():
        got = calls()
        module.multiplier = 1.0
        for weight in weights:
            weight *= 0.25
        assert torch.allclose(got, calls(), atol=1e-6)


def test_learning_rates_and_decay_multiply(load):
    """Width times relative rate, at both ends; decay as stated, or such that lr * decay is as at base width."""
    rates = "optim.relative_lr={expert: {start: 0.3, end: 1.125}}"
    for scaled, decay in ((False, 0.1), (True, 0.4)):
        loaded = load(rates, f"parametrization.scale_weight_decay={str(scaled).lower()}")
        rules = widths(loaded.recipe, loaded.architecture)
        model = build_language_model(loaded.architecture, rules)
        initialize(model, loaded.recipe.parametrization.init, 0, rules)
        optimizer = build_adamw(model, loaded.recipe.optim, rules)
        group, = (group for group in optimizer.param_groups
                  if any(p is model.layers["1"].block.experts.up for p in group["params"]))
        assert (group["start"], group["end"], group["weight_decay"]) == pytest.approx((0.075, 0.28125, decay))
        set_learning_rates(optimizer, loaded.recipe.optim, 10, 10)
        assert group["lr"] == pytest.approx(0.01 * 0.1 * 0.28125)


def test_relative_std_scales_what_the_rule_gives(load):
    loaded = load("parametrization.init.relative_std={expert: 0.5, unembedding: 0.0}", "parametrization.kind=standard")
    models = []
    for init in (loaded.recipe.parametrization.init, load().recipe.parametrization.init):
        models.append(build_language_model(loaded.architecture))
        initialize(models[-1], init, 0)
    ours, plain = (dict(model.named_parameters()) for model in models)
    assert not ours["unembedding.weight"].any()
    for name, _, _, declared in declarations(models[0]):
        if declared.role != "unembedding":
            factor = 0.5 if family_of(declared.role) == "expert" else 1.0
            torch.testing.assert_close(ours[name], plain[name] * factor)


@pytest.mark.parametrize(("overrides", "said"), [
    (["parametrization.base_d_model=null"], "kind: given 'mup' without base_d_model"),
    (["parametrization={kind: standard, base_d_model: null, base_model: {moe: {num_experts: 8}}}"], "without base_d"),
    (["parametrization.base_d_model=30"], "the model of width 30 cannot be"),
    (["parametrization.base_model={moe: {expert: 8}}"], "unknown key"),
    (["parametrization.base_model={pattern: '*E'}"], "other parameters"),
    (["parametrization.base_model={norm: layernorm}"], "other parameters"),
    (["parametrization.init.relative_std={expertz: 0.5}"], "matches no parameter"),
])
def test_refusals(load, overrides, said):
    with pytest.raises(RecipeError, match="parametrization") as refused:
        load(*overrides)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_classes_have_a_name_for_each_row_of_show(load):
    assert {rule.width_class for rule in by_role(load()).values()} == set(WidthClass)
