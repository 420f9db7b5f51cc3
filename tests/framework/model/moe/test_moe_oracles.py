"""MoE blocks against those of Hugging Face transformers with copied weights: output and every gradient.

D model width, E experts, F width of an expert.
"""

import importlib

import pytest
import torch

from framework.model.context import Context
from framework.model.moe import MixtureOfExperts
from framework.recipe.schema import MoE

pytest.importorskip("transformers")

D_MODEL, NUM_EXPERTS, TOP_K, D_EXPERT = 16, 8, 3, 12
SIZES = dict(hidden_size=D_MODEL, num_experts_per_tok=TOP_K, moe_intermediate_size=D_EXPERT, hidden_act="silu",
             intermediate_size=D_EXPERT)

# family, block class, its config, our settings
CASES = {
    "qwen3_moe_normalised": (
        "qwen3_moe", "Qwen3MoeSparseMoeBlock", dict(num_experts=NUM_EXPERTS, norm_topk_prob=True), {}),
    "qwen3_moe": (
        "qwen3_moe", "Qwen3MoeSparseMoeBlock", dict(num_experts=NUM_EXPERTS, norm_topk_prob=False),
        dict(normalize_top_k=False)),
    "olmoe": (
        "olmoe", "OlmoeSparseMoeBlock", dict(num_experts=NUM_EXPERTS, norm_topk_prob=False),
        dict(normalize_top_k=False)),
    "mixtral": ("mixtral", "MixtralSparseMoeBlock", dict(num_local_experts=NUM_EXPERTS), {}),
    "granitemoe": (
        "granitemoe", "GraniteMoeMoE", dict(num_local_experts=NUM_EXPERTS), dict(router="topk_softmax")),
    "qwen2_moe": (
        "qwen2_moe", "Qwen2MoeSparseMoeBlock",
        dict(num_experts=NUM_EXPERTS, norm_topk_prob=False, shared_expert_intermediate_size=D_EXPERT),
        dict(normalize_top_k=False, num_shared_experts=1, shared_expert_router=True)),
    "deepseek_v3": (
        "deepseek_v3", "DeepseekV3MoE",
        dict(n_routed_experts=NUM_EXPERTS, n_shared_experts=2, n_group=1, topk_group=1, norm_topk_prob=True,
             routed_scaling_factor=2.5),
        dict(router="sigmoid", selection_bias_rate=1e-3, gate_scale=2.5, num_shared_experts=2)),
}

ROUTERS = ("gate.weight", "router.weight")
PLAIN = {
    "shared.gate.weight": ("shared_expert.gate_proj.weight", "shared_experts.gate_proj.weight"),
    "shared.up.weight": ("shared_expert.up_proj.weight", "shared_experts.up_proj.weight"),
    "shared.down.weight": ("shared_expert.down_proj.weight", "shared_experts.down_proj.weight"),
    "shared_router.weight": ("shared_expert_gate.weight",),
    "router.weight": ROUTERS,
}


def theirs(family, block, options, dtype):
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    name = next(name for name in dir(module) if name.lower() == family.replace("_", "") + "config")
    config = getattr(module, name)(**SIZES, **options)
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    block = getattr(module, block)(config)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    if family == "deepseek_v3":
        block.gate.e_score_correction_bias.normal_(std=0.2)
    return block.to(dtype)


def named_as_ours(tensors: dict) -> dict:
    """Their weights or gradients under our names: they stack gate and up in one tensor."""
    gate_EFD, up_EFD = tensors["experts.gate_up_proj"].chunk(2, 1)
    ours = {"experts.gate": gate_EFD, "experts.up": up_EFD, "experts.down": tensors["experts.down_proj"]}
    return ours | {name: tensors[other] for name, others in PLAIN.items() for other in others if other in tensors}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_output_and_every_gradient_equal_transformers(case, dtype):
    family, block, options, settings = CASES[case]
    reference = theirs(family, block, options, dtype)
    ours = MixtureOfExperts(D_MODEL, MoE(num_experts=NUM_EXPERTS, top_k=TOP_K, d_expert=D_EXPERT, **settings), 1e-5)
    ours = ours.to(dtype)
    state = named_as_ours(dict(reference.named_parameters()))
    if settings.get("selection_bias_rate"):
        state["router.selection_bias_E"] = reference.gate.e_score_correction_bias
    ours.load_state_dict(state)

    x_BSD, dy_BSD = torch.randn(2, 3, 10, D_MODEL, dtype=dtype)
    outputs, inputs = [], []
    for call in (lambda x: ours(x, Context()), reference):
        inputs.append(x_BSD.clone().requires_grad_())
        outputs.append(call(inputs[-1]))
        outputs[-1].backward(dy_BSD)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-5, atol=1e-5)
    expected = named_as_ours({name: parameter.grad for name, parameter in reference.named_parameters()})
    assert set(expected) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert expected[name].abs().max() > 1e-3
        torch.testing.assert_close(parameter.grad, expected[name], rtol=2e-5, atol=2e-5)


def test_load_balance_loss_of_one_forward_equals_transformers():
    """Theirs counts rows per token, so it is top_k times ours."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    sizes = dict(num_experts=NUM_EXPERTS, top_k=TOP_K, d_expert=4)
    settings = MoE(**sizes, load_balance_weight=1.0, load_balance_over="forward")
    moe = MixtureOfExperts(D_MODEL, settings, 1e-5)
    torch.manual_seed(0)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x_BSD = torch.randn(4, 10, D_MODEL)
    moe(x_BSD, Context(num_sequences=4))
    expected = load_balancing_loss_func((moe.router(x_BSD).flatten(0, 1),), NUM_EXPERTS, TOP_K)
    torch.testing.assert_close(moe.take_statistics()["load_balance_loss"] * TOP_K, expected)
