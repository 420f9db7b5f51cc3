"""Factors on the experts' weights, which make up for gates that do not sum the shards to the dense block."""

from __future__ import annotations

from framework.recipe.schema import MoE
from framework.surgery.split import Split

MATRICES = ("gate", "up", "down")


def sums_to_one(moe: MoE) -> bool:
    """Whether a token's gates sum to one, before gate_scale, whatever the router says."""
    if moe.router == "softmax_topk":
        return moe.normalize_top_k or moe.top_k == moe.num_experts
    return moe.router == "topk_softmax" or (moe.router == "sigmoid" and moe.normalize_top_k)


def needed_factor(moe: MoE, split: Split) -> float:
    """What the routed experts' output is to be multiplied by to be the dense block's; exactly or for even gates.

    N experts of G shards in R replicas, T choices per token, S = gate_scale. Even gates and loads are assumed.

    gates that sum to one       1/T each             G / S              https://arxiv.org/abs/2410.07524, its code
    softmax over all experts    1/N each             R G^2 / (T S)      https://arxiv.org/abs/2410.07524 (E for R)
    sigmoid                     1/2 each             2 G / (T S)        derived
    experts choose              1/N, C T a token     R G^2 / (C T S)    derived; C is capacity_factor, 1 if none
    """
    shards, choices = split.granularity, moe.top_k
    if sums_to_one(moe):
        return shards / moe.gate_scale
    if moe.router == "sigmoid":
        return 2 * shards / (choices * moe.gate_scale)
    if moe.router == "expert_choice":
        choices *= moe.capacity_factor or 1.0
    return split.replicas * shards**2 / (choices * moe.gate_scale)


def shared_factor(moe: MoE) -> float:
    """What the shared experts' output is to be multiplied by: their router starts at zero, and its sigmoid at 1/2."""
    return 2.0 if moe.shared_expert_router else 1.0


def factors(total: float, activation: str, scaling: str) -> dict[str, float]:
    """Factors on gate, up and down that multiply the output of act(up x) down, or silu(gate x) (up x) down, by `total`.

    none: no factors. paper: the same on all matrices, total^(1/3) for swiglu and relu2, total^(1/2) for the others
    (2410.07524, "weight scaling", and its code): relu is homogeneous, relu2 of degree 2, so that they are exact; silu
    and gelu are not. exact (derived): on those matrices alone in which the block is homogeneous whatever its weights:
    up and down of swiglu by total^(1/2), down of gelu by the total; relu and relu2 as in the paper.
    """
    if scaling == "none":
        return dict.fromkeys(MATRICES, 1.0)
    if scaling == "exact" and activation == "swiglu":
        return {"gate": 1.0, "up": total**0.5, "down": total**0.5}
    if scaling == "exact" and activation == "gelu":
        return {"gate": 1.0, "up": 1.0, "down": total}
    root = total ** (1 / 3 if activation in ("swiglu", "relu2") else 1 / 2)
    return dict.fromkeys(MATRICES, root)


def is_exact(total: float, activation: str, scaling: str) -> bool:
    """Whether those factors multiply the output by exactly `total`."""
    if total == 1.0 or scaling == "none":
        return total == 1.0
    return scaling == "exact" or activation in ("relu", "relu2")
