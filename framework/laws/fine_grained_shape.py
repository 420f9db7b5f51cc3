"""Counts of the fine-grained law: of its models' parameters, and of the FLOPs that a token costs."""

from __future__ import annotations

FFN_FLOPS, ROUTING_FLOPS = 6, 14
"""c_f and c_r: training FLOPs a token for each active parameter, and for each number of the router's d_model E G."""


def total_of_active(num_params_active: float, expansion_rate: float) -> float:
    """N = d_model^2 (8 E + 4) blocks, of N_act = 12 d_model^2 blocks; neither counts embeddings and routers."""
    return num_params_active * (8 * expansion_rate + 4) / 12


def num_blocks(num_params_active: float) -> float:
    """Blocks of a model with d_model = 64 blocks, the shape of all of the paper's optima."""
    return (num_params_active / (12 * 64**2)) ** (1 / 3)


def flops_per_token(num_params_active: float, granularity: float, expansion_rate: float) -> float:
    """Training FLOPs a token, (12 d_model^2 c_f + d_model E G c_r) blocks; of attention's scores there are none."""
    blocks = num_blocks(num_params_active)
    routing = 64 * blocks * expansion_rate * granularity * ROUTING_FLOPS * blocks
    return num_params_active * FFN_FLOPS + routing
