"""What a user would pick instead, where it is installed; called with the arguments of our functions.

Each function returns the peers of one of ours by name, None for one that is not installed.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

Peers = dict[str, Callable[..., object] | None]


def ssd() -> Peers:
    return {"mamba_ssm": _if_installed("mamba_ssm", _mamba_ssd), "fla simple_gla": _if_installed("fla", _fla_ssd)}


def selective_scan() -> Peers:
    return {"mamba_ssm": _if_installed("mamba_ssm", _mamba_selective_scan)}


def causal_convolution() -> Peers:
    return {"causal_conv1d": _if_installed("causal_conv1d", _causal_conv1d)}


def gated_rms_norm() -> Peers:
    return {"mamba_ssm": _if_installed("mamba_ssm", _mamba_norm)}


def permute_and_grouped_mm(
    x_TD: Tensor, token_M: Tensor, gate_M: Tensor, counts_E: Tensor, gate_EFD: Tensor, up_EFD: Tensor,
    down_EDF: Tensor, *_: object,
) -> Tensor:
    """SwiGLU experts over a permuted copy of the tokens, with PyTorch's grouped products."""
    ends_E = counts_E.cumsum(0).to(torch.int32)
    x_MD = x_TD.index_select(0, token_M)
    hidden_MF = F.silu(F.grouped_mm(x_MD, gate_EFD.mT, offs=ends_E)) * F.grouped_mm(x_MD, up_EFD.mT, offs=ends_E)
    y_MD = F.grouped_mm(hidden_MF, down_EDF.mT, offs=ends_E)
    y_TD = torch.zeros(x_TD.shape, dtype=torch.float32, device=x_TD.device)
    return y_TD.index_add(0, token_M, y_MD.float() * gate_M[:, None]).to(x_TD.dtype)


def unfused_router(logits_BSE: Tensor, top_k: int, scoring: str, normalize: bool, *_: object) -> tuple[Tensor, ...]:
    """Of softmax scores: gates, experts, loads, and logsumexp^2, by PyTorch's own functions."""
    probability_BSE = logits_BSE.softmax(-1)
    gate_BSK, index_BSK = probability_BSE.topk(top_k)
    if normalize:
        gate_BSK = gate_BSK / gate_BSK.sum(-1, keepdim=True)
    rows_BE = torch.zeros_like(probability_BSE[:, 0]).scatter_add_(
        1, index_BSK.flatten(1), torch.ones_like(gate_BSK.flatten(1)))
    return index_BSK, gate_BSK, rows_BE, probability_BSE.sum(1), logits_BSE.logsumexp(-1).square().sum(1)


def argsort_and_bincount(expert_M: Tensor, num_experts: int) -> tuple[Tensor, ...]:
    order_M = expert_M.argsort(stable=True)
    place_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))
    return order_M, place_M, torch.bincount(expert_M, minlength=num_experts)


def _if_installed(package: str, function: Callable[..., object]) -> Callable[..., object] | None:
    return function if find_spec(package) else None


def _mamba_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *_: object) -> Tensor:
    scan = import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    return scan(x, dt, A, B, C, chunk_size=256, D=D)


def _fla_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *_: object) -> Tensor:
    """Gated linear attention is the same recurrence: queries C, keys B, values dt x, log decays dt A."""
    heads_per_group = x.shape[2] // B.shape[2]
    q, k = (vectors.repeat_interleave(heads_per_group, 2) for vectors in (C, B))
    chunk = import_module("fla.ops.simple_gla").chunk_simple_gla
    y, _ = chunk(q, k, (x * dt[..., None]).to(x.dtype), g=dt * A, scale=1.0)
    return y + x * D[:, None].to(x.dtype)


def _mamba_selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *_: object) -> Tensor:
    scan = import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    return scan(x.mT.contiguous(), dt.mT.contiguous(), A, B.mT.contiguous(), C.mT.contiguous(), D).mT


def _causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, *_: object) -> Tensor:
    convolve = import_module("causal_conv1d").causal_conv1d_fn
    return convolve(x.mT, weight.to(x.dtype), bias.to(x.dtype), activation="silu").mT


def _mamba_norm(y: Tensor, z: Tensor, weight: Tensor, group_size: int, eps: float) -> Tensor:
    norm = import_module("mamba_ssm.ops.triton.layernorm_gated").rmsnorm_fn
    return norm(y, weight, None, z=z, eps=eps, group_size=group_size, norm_before_gate=False)
