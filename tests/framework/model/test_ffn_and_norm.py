"""Feed-forward blocks and norms against plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from framework.model.ffn import FFN, FFNRoles
from framework.model.norm import make_norm
from framework.parametrization.roles import Role
from tests.helpers.models import roles_of

PLAIN = {"gelu": nn.GELU(), "relu": nn.ReLU(), "relu2": lambda x: x.clamp(min=0) ** 2}


def randomise(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.double()


@pytest.mark.parametrize("activation", [*PLAIN, "swiglu"])
def test_formula_and_roles(activation):
    ffn = randomise(FFN(6, 10, activation))
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    hidden = x @ ffn.up.weight.T
    if activation == "swiglu":
        gate = x @ ffn.gate.weight.T
        hidden = gate * torch.sigmoid(gate) * hidden
    else:
        hidden = PLAIN[activation](hidden)
    torch.testing.assert_close(ffn(x), hidden @ ffn.down.weight.T, rtol=1e-12, atol=1e-12)
    gate = {Role.FFN_GATE} if activation == "swiglu" else set()
    assert roles_of(ffn) == {Role.FFN_UP, Role.FFN_DOWN} | gate


def test_other_roles():
    roles = FFNRoles(Role.SHARED_EXPERT_GATE, Role.SHARED_EXPERT_UP, Role.SHARED_EXPERT_DOWN)
    assert roles_of(FFN(6, 10, "swiglu", roles)) == set(roles)


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_norms(kind):
    norm = randomise(make_norm(kind, 16, 1e-3))
    x = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
    if kind == "rmsnorm":
        expected = F.rms_norm(x, (16,), norm.weight, 1e-3)
    else:
        expected = F.layer_norm(x, (16,), norm.weight, norm.bias, 1e-3)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_statistics_of_bfloat16_are_taken_in_float32(kind):
    norm = make_norm(kind, 512, 1e-5)
    norm = randomise(norm).float()
    x = (torch.randn(8, 512) + 8).bfloat16()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, norm(x.float()).bfloat16(), rtol=0, atol=0)
