"""FLOPs by part sum to the recipe's count, which is what PyTorch's counter sees of a step.

The counter knows matrix products. So attention is written as products over the keys that each query
sees, and a recurrence token by token, with products for what it adds to its state and reads of it. The state's decay is
elementwise, which the counter does not see, and is added by the formula: 2 * I * N a token and forward.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from framework.bench.flops import flops_by_part
from framework.model import Context, build_language_model
from framework.model.attention import Attention
from framework.model.mamba1 import Mamba1
from framework.model.mamba2 import Mamba2
from framework.model.ssm import CausalConvolution
from framework.recipe import architecture, sizes
from framework.recipe.parameters import inner_width
from framework.recipe.schema import Model

SEQ_LEN = 24
BASE = {"d_model": 64, "vocab_size": 96, "attention": {"num_heads": 4}, "ffn": {"d_ff": 96},
        "moe": {"num_experts": 8, "top_k": 2, "d_expert": 32}, "mamba": {"d_state": 8, "head_dim": 16}}
PATTERNS = {
    "MoE": ("*E", {}), "Mamba-1": ("m", {}), "Mamba-2": ("M", {"mamba": {**BASE["mamba"], "num_groups": 2}}),
    "hybrid": ("mE*EM-", {"tie_embeddings": True, "attention": {"num_heads": 4, "num_kv_heads": 2, "window": 7},
                          "moe": {**BASE["moe"], "num_shared_experts": 1, "shared_expert_router": True}}),
}
IN_PLACE = {torch.ops.aten.addmm_: lambda _, left, right, **named: 2 * left[0] * left[1] * right[1]}
"""A product that is added in place, as gradients are: the counter knows only the one with a result of its own."""


def visible_products(q_BSHP, k_BLGP, v_BLGP, scale, window, document_BS):
    """Attention, query by query, over the keys that it sees."""
    repeats = q_BSHP.shape[2] // k_BLGP.shape[2]
    k, v = (each.repeat_interleave(repeats, 2).transpose(1, 2) for each in (k_BLGP, v_BLGP))
    outputs = []
    for t, q in enumerate(q_BSHP.unbind(1)):
        seen = slice(max(0, t + 1 - (window or SEQ_LEN)), t + 1)
        weights = (scale * q[:, :, None] @ k[:, :, seen].mT).softmax(-1)
        outputs.append((weights @ v[:, :, seen])[:, :, 0])
    return torch.stack(outputs, 1)


def recurrence(x, decay, B, C, D):
    """h = decay h + x B^T, y = h C + D x: x [B, S, I], decay [B, S, I, N or 1], B and C [B, S, I or 1, N]."""
    h, outputs = torch.zeros(len(x), x.shape[2], B.shape[-1]), []
    for t in range(x.shape[1]):
        rows = x[:, t].flatten()[:, None, None]
        added = rows @ B[:, t].expand(-1, x.shape[2], -1).flatten(0, 1)[:, None]
        h = decay[:, t] * h + added.view_as(h)
        read = h.flatten(0, 1)[:, None] @ C[:, t].expand(-1, x.shape[2], -1).flatten(0, 1)[..., None]
        outputs.append(read.view(len(x), -1) + D * x[:, t])
    return torch.stack(outputs, 1)


def scan1(x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, *rest):
    decay = (dt_BSI[..., None] * A_IN).exp()
    # D x is of x alone, before it is scaled by dt.
    y = recurrence(dt_BSI * x_BSI, decay, B_BSN[:, :, None], C_BSN[:, :, None], torch.zeros_like(D_I)) + D_I * x_BSI
    return y, None


def scan2(x_BSHP, dt_BSH, A_H, B_BSGN, C_BSGN, D_H, *rest):
    heads, width = x_BSHP.shape[2:]
    B, C = (each.repeat_interleave(heads * width // each.shape[2], 2) for each in (B_BSGN, C_BSGN))
    decay = (dt_BSH * A_H).exp().repeat_interleave(width, 2)[..., None]
    x = (dt_BSH[..., None] * x_BSHP).flatten(2)
    y = recurrence(x, decay, B, C, torch.zeros(heads * width)).view_as(x_BSHP) + D_H[:, None] * x_BSHP
    return y, None


def convolve(x_BSC, weight_CK, bias_C, *rest):
    """A product for each channel: the counter takes a convolution's gradient of channels apart for a dense one."""
    windows_BCSK = F.pad(x_BSC.mT, (weight_CK.shape[1] - 1, 0)).unfold(2, weight_CK.shape[1], 1)
    y_CT1 = windows_BCSK.transpose(0, 1).flatten(1, 2) @ weight_CK[..., None]
    return F.silu(y_CT1.view(len(bias_C), *x_BSC.shape[:2]).permute(1, 2, 0) + bias_C), None


def in_products(model):
    """The model, with everything that the counter cannot see written so that it can."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = visible_products
        elif isinstance(module, Mamba1):
            module.scan = scan1
        elif isinstance(module, Mamba2):
            module.scan = scan2
        elif isinstance(module, CausalConvolution):
            module.convolve = convolve
    return model


def built(case):
    pattern, changes = PATTERNS[case]
    found = architecture(Model(**{**BASE, **changes, "pattern": pattern}))
    model = build_language_model(found)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return found, model


def decays(found) -> float:
    """What the counter leaves out of the recurrences, a token of training."""
    return sum(3 * 2 * inner_width(found.model.d_model, each.settings) * each.settings.d_state
               for each in found.sublayers() if each.kind.startswith("mamba"))


@pytest.mark.parametrize("case", PATTERNS)
def test_as_torch_counts_a_step(case):
    found, model = built(case)
    tokens_BS = torch.randint(96, (2, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0))
    batch = tokens_BS[:, :-1], Context(), tokens_BS[:, 1:]
    loss = model(*batch)
    torch.testing.assert_close(in_products(model)(*batch), loss)  # the same function, in products
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        model(*batch).backward()
    counted = counter.get_total_flops() / (2 * SEQ_LEN) + decays(found)
    assert sizes(found, SEQ_LEN)["flops_per_token"] == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("case", PATTERNS)
def test_parts_sum_to_the_whole_and_dropped_rows_are_left_out(case):
    found, _ = built(case)
    parts = flops_by_part(found, SEQ_LEN)
    assert sum(parts.values()) == pytest.approx(sizes(found, SEQ_LEN)["flops_per_token"], abs=1)
    fewer = flops_by_part(found, SEQ_LEN, rows_per_choice=0.75)
    assert sum(parts.values()) - sum(fewer.values()) == pytest.approx(0.25 * parts.get("experts", 0))


def test_parts_by_hand():
    found, _ = built("Mamba-1")
    assert flops_by_part(found, SEQ_LEN) == {
        "ssm": 6 * (3 * 64 * 128 + 128 * (8 + 8 + 4) + 4 * 128), "convolution": 6 * 4 * 128, "head": 6 * 96 * 64,
        "scan": 3 * 6 * 128 * 8}
