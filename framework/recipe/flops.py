"""Floating-point operations of training on one token, by the model's arithmetic and not by its kernels'.

A multiplication and an addition count 2. Forward: 2 for each active number of a matrix (routers and unembedding
included, the embedding's look-up not), 4 * head_dim * num_heads for each key that a query sees (q.k and the weighted
sum of v; the average over a causal sequence, window included), 6 * I * N for an SSM's recurrence (decay, update,
read-out). Norms, activations, softmax, rotations and biases are left out. Training: three times the forward;
recomputation is not counted.
"""

from __future__ import annotations

from framework.recipe.architecture import Architecture, Sublayer
from framework.recipe.parameters import Parameter, inner_width

NOT_MULTIPLIED = ("embedding", "ssm_A")


def training_flops_per_token(architecture: Architecture, seq_len: int, rows: list[Parameter]) -> int:
    """FLOPs of forward and backward per token at a sequence length; rows: the architecture's parameters."""
    matrices = sum(2 * row.active_size for row in rows if len(row.shape) > 1 and row.role not in NOT_MULTIPLIED)
    if architecture.model.tie_embeddings:
        matrices += 2 * architecture.model.vocab_size * architecture.model.d_model
    mixing = sum(mixing_flops(sublayer, architecture.model.d_model, seq_len) for sublayer in architecture.sublayers())
    return round(3 * (matrices + mixing))


def mixing_flops(sublayer: Sublayer, d_model: int, seq_len: int) -> float:
    """FLOPs of a token's forward in what mixes tokens: attention's products of activations, an SSM's recurrence."""
    settings = sublayer.settings
    if sublayer.kind == "attention":
        return 4 * settings.head_dim * settings.num_heads * mean_visible_keys(seq_len, settings.window)
    if sublayer.kind in ("mamba1", "mamba2"):
        return 6 * inner_width(d_model, settings) * settings.d_state
    return 0


def mean_visible_keys(seq_len: int, window: int | None) -> float:
    """Keys that a query sees on average over a causal sequence: min(t, window) for its t-th token."""
    window = min(window or seq_len, seq_len)
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len
