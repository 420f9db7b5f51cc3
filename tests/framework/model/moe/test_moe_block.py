"""The block as a whole: dtypes, statistics, dropping, loss-free balancing, single tokens.

B batch, S sequence, D model width, E experts.
"""

import pytest
import torch
from torch.nn import functional as F

from framework.model.context import Context
from framework.model.moe import MixtureOfExperts
from framework.parametrization.roles import Role, declarations
from framework.recipe.schema import MoE
from kernels.backend import use_backend

D_MODEL, NUM_EXPERTS = 16, 8
OPTIONS = {
    "softmax_topk": {},
    "topk_softmax": dict(router="topk_softmax"),
    "sigmoid": dict(router="sigmoid", selection_bias_rate=0.1),
    "expert_choice": dict(router="expert_choice"),
    "expert_choice_by_position": dict(router="expert_choice", choice_group="position"),
    "capacity": dict(capacity_factor=1.0),
    "shared": dict(num_shared_experts=2, shared_expert_router=True),
    "everything": dict(activation="relu2", num_shared_experts=1, output_norm=True, capacity_factor=1.5, gate_scale=2.0,
                       load_balance_weight=0.1, z_loss_weight=0.1),
}


def block(**fields):
    settings = MoE(**{"num_experts": NUM_EXPERTS, "top_k": 2, "d_expert": 8, **fields})
    moe = MixtureOfExperts(D_MODEL, settings, 1e-5)
    torch.manual_seed(0)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return moe


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 1), (2, 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_runs_in_every_dtype_and_reaches_every_parameter(option, dtype, shape):
    moe = block(**OPTIONS[option])
    x_BSD = torch.randn(*shape, D_MODEL, dtype=dtype, requires_grad=True)
    y_BSD = moe(x_BSD, Context())
    y_BSD.sum().backward()
    assert y_BSD.dtype == dtype and y_BSD.shape == x_BSD.shape and y_BSD.isfinite().all()
    assert x_BSD.grad.dtype == dtype and x_BSD.grad.isfinite().all()
    for parameter in moe.parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()


@pytest.mark.parametrize("option", ["softmax_topk", "topk_softmax", "sigmoid", "capacity", "everything"])
def test_in_triton_it_is_what_it_is_in_pytorch(option):
    moe = block(**OPTIONS[option] | dict(load_balance_weight=0.1, z_loss_weight=0.1))
    if moe.router.selection_bias_E is not None:
        moe.router.selection_bias_E.normal_()
    x_BSD, dy_BSD = torch.randn(2, 2, 9, D_MODEL)
    results = []
    for backend in ("torch", "triton"):
        moe.zero_grad()
        x_BSD = x_BSD.detach().requires_grad_()
        with use_backend(backend):
            y_BSD = moe(x_BSD, Context(num_sequences=2))
            y_BSD.backward(dy_BSD)
        gradients = [parameter.grad.clone() for parameter in moe.parameters()]
        results.append([y_BSD.detach(), x_BSD.grad, *gradients, *moe.take_statistics().values()])
    for expected, got in zip(*results, strict=True):
        assert (got.double() - expected.double()).norm() <= 3e-6 * expected.double().norm()


def test_bfloat16_chooses_experts_by_float32_logits():
    moe = block()
    x_BSD = torch.randn(2, 9, D_MODEL, dtype=torch.bfloat16)
    assert moe.router(x_BSD).dtype == torch.float32
    torch.testing.assert_close(moe.router(x_BSD), F.linear(x_BSD.float(), moe.router.weight))


def test_with_all_experts_chosen_it_is_the_weighted_sum_of_all():
    moe = block(top_k=NUM_EXPERTS).double()
    x_BSD = torch.randn(2, 5, D_MODEL, dtype=torch.float64)
    expected = torch.zeros_like(x_BSD)
    gates_BSE = (x_BSD @ moe.router.weight.t()).softmax(-1)
    for e in range(NUM_EXPERTS):
        hidden = F.silu(x_BSD @ moe.experts.gate[e].t()) * (x_BSD @ moe.experts.up[e].t())
        expected += gates_BSE[..., e, None] * (hidden @ moe.experts.down[e].t())
    torch.testing.assert_close(moe(x_BSD, Context()), expected)


def test_output_norm_closes_the_layer():
    moe = block(output_norm=True, num_shared_experts=1)
    torch.nn.init.ones_(moe.output_norm.weight)
    torch.nn.init.zeros_(moe.output_norm.bias)
    y_BSD = moe(torch.randn(2, 5, D_MODEL), Context())
    torch.testing.assert_close(y_BSD.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(y_BSD.var(-1, correction=0), torch.ones(2, 5), atol=1e-2, rtol=0)


def test_rows_are_dropped_in_training_only_unless_asked():
    x_BSD = torch.randn(2, 32, D_MODEL)
    dropped = {}
    for in_evaluation in (False, True):
        moe = block(capacity_factor=0.5, capacity_in_evaluation=in_evaluation)
        for training in (True, False):
            moe.train(training)(x_BSD, Context())
            dropped[in_evaluation, training] = moe.take_statistics()["dropped"].item()
    assert dropped[False, True] == dropped[True, True] == dropped[True, False] > 0
    assert dropped[False, False] == 0


def test_a_token_that_every_expert_drops_gets_zero():
    moe = block(top_k=1, capacity_factor=0.5)
    x_BSD = torch.randn(1, 1, D_MODEL).expand(1, 32, D_MODEL)
    y_BSD = moe(x_BSD, Context())
    assert y_BSD[0, :2].abs().amin() > 0 and not y_BSD[0, 2:].any()


def test_statistics_are_summed_over_forwards_and_taken_once():
    moe = block(load_balance_weight=0.1, z_loss_weight=0.1)
    parts = torch.randn(2, 3, 7, D_MODEL)
    each = []
    for part in parts:
        moe(part, Context())
        each.append(moe.take_statistics())
    for part in parts:
        moe(part, Context())
    for name, total in moe.take_statistics().items():
        torch.testing.assert_close(total, each[0][name] + each[1][name])
        assert not total.requires_grad
    assert moe.take_statistics() == {}
    assert each[0]["tokens_per_expert_E"].sum() == 3 * 7 * 2


def test_the_selection_bias_follows_the_sign_of_the_lack():
    moe = block(router="sigmoid", selection_bias_rate=0.25)
    moe.update_selection_bias(torch.tensor([0, 4, 2, 2, 1, 3, 2, 2]))
    assert moe.router.selection_bias_E.tolist() == [0.25, -0.25, 0, 0, 0.25, -0.25, 0, 0]
    assert "router.selection_bias_E" in moe.state_dict()
    assert "router.selection_bias_E" not in block().state_dict()


def test_the_selection_bias_evens_out_loads():
    moe = block(router="sigmoid", top_k=1, selection_bias_rate=0.01)
    x_BSD = torch.randn(4, 64, D_MODEL) + 2 * torch.randn(D_MODEL)
    extremes = []
    for _ in range(200):
        moe(x_BSD, Context())
        counts_E = moe.take_statistics()["tokens_per_expert_E"]
        extremes.append(counts_E.max().item())
        moe.update_selection_bias(counts_E)
    assert extremes[0] > 64 and max(extremes[-10:]) < 45  # the mean is 32


def test_repeated_runs_are_equal_bit_for_bit():
    moe, x_BSD = block(num_shared_experts=1, load_balance_weight=0.1), torch.randn(2, 50, D_MODEL)
    gradients = []
    for _ in range(2):
        moe.zero_grad()
        moe(x_BSD, Context()).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in moe.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_experts_are_stacks_of_matrices_with_the_fan_in_of_one():
    moe = block(num_shared_experts=2, shared_expert_router=True)
    found = {name: declaration for name, _, _, declaration in declarations(moe)}
    assert {name: (d.role, d.fan_in, d.stacked, d.writes_residual) for name, d in found.items()} == {
        "router.weight": (Role.ROUTER, D_MODEL, False, False),
        "experts.gate": (Role.EXPERT_GATE, D_MODEL, True, False),
        "experts.up": (Role.EXPERT_UP, D_MODEL, True, False),
        "experts.down": (Role.EXPERT_DOWN, 8, True, True),
        "shared.gate.weight": (Role.SHARED_EXPERT_GATE, D_MODEL, False, False),
        "shared.up.weight": (Role.SHARED_EXPERT_UP, D_MODEL, False, False),
        "shared.down.weight": (Role.SHARED_EXPERT_DOWN, 16, False, True),
        "shared_router.weight": (Role.SHARED_EXPERT_ROUTER, D_MODEL, False, False),
    }
