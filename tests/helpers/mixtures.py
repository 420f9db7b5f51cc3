"""A mixture-of-experts block with each way of routing, and a step of it.

B batch, S sequence, D model width.
"""

import torch
from torch import Tensor, nn

from framework.model import Context
from framework.model.moe import MixtureOfExperts
from framework.recipe.schema import MoE

BATCH_SIZE, SEQ_LEN, D_MODEL, NUM_EXPERTS, TOP_K = 4, 12, 8, 8, 3
LOSSES = dict(load_balance_weight=0.5, z_loss_weight=0.1)
OPTIONS = {
    "dropless": LOSSES,
    "capacity": LOSSES | dict(capacity_factor=0.7),
    "topk_softmax": LOSSES | dict(router="topk_softmax", capacity_factor=0.7),
    "sigmoid": LOSSES | dict(router="sigmoid", selection_bias_rate=0.1, gate_scale=2.0),
    "sigmoid_with_capacity": LOSSES | dict(router="sigmoid", selection_bias_rate=0.1, capacity_factor=0.8),
    "expert_choice": LOSSES | dict(router="expert_choice"),
    "expert_choice_by_position": LOSSES | dict(router="expert_choice", choice_group="position"),
    "over_forward": LOSSES | dict(load_balance_over="forward"),
    "shared": LOSSES | dict(num_shared_experts=1, shared_expert_router=True, output_norm=True),
    "one_expert_for_all": dict(top_k=1, gate_scale=3.0),
}


def block(option: str) -> MixtureOfExperts:
    """In float64; for one_expert_for_all with a router that cannot tell experts apart."""
    settings = MoE(**dict(num_experts=NUM_EXPERTS, top_k=TOP_K, d_expert=4) | OPTIONS[option])
    moe = MixtureOfExperts(D_MODEL, settings, 1e-5)
    generator = torch.Generator().manual_seed(0)
    for parameter in moe.parameters():
        nn.init.normal_(parameter, generator=generator)
    if settings.selection_bias_rate:
        moe.router.selection_bias_E.normal_(generator=generator)
    if option == "one_expert_for_all":
        nn.init.zeros_(moe.router.weight)
    return moe.double()


def batch() -> Tensor:
    """Inputs and gradients of the output: [2, B, S, D]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, BATCH_SIZE, SEQ_LEN, D_MODEL, generator=generator, dtype=torch.float64)


def run(moe: MixtureOfExperts, x_BSD: Tensor, dy_BSD: Tensor) -> tuple[Tensor, Tensor, dict, dict]:
    """The output, the input's gradient, statistics, and the parameters' gradients."""
    x_BSD = x_BSD.clone().requires_grad_()
    y_BSD = moe(x_BSD, Context(num_sequences=BATCH_SIZE))
    y_BSD.backward(dy_BSD)
    gradients = {name: parameter.grad for name, parameter in moe.named_parameters()}
    return y_BSD.detach(), x_BSD.grad, moe.take_statistics(), gradients
