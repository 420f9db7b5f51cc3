"""What a forward keeps for its backward, sublayer by sublayer: bytes on one rank.

By what the model's functions save, as their kernels run on a GPU; docs/kernels.md says it for experts. T tokens of the
residual stream on a rank, U tokens inside a block that gathers those of tp, D model width, F width of a feed-forward
block, E experts, K choices, M = T K rows (as many for the experts here as from the tokens here), H and G query and
key-value heads, P their width, I inner width of a state-space block, N its state; b bytes of an activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

from framework.plan.dispatch import mean_visits
from framework.recipe.parameters import inner_width
from framework.training.shares import forward_size

if TYPE_CHECKING:
    from framework.plan.outline import Outline
    from framework.recipe import Sublayer
    from parallel import MeshSizes


@dataclass(frozen=True)
class Forward:
    """Sizes of one forward on one rank. sequences: of a micro-batch. part: tokens of a sequence on a rank of cp. width:
    D. itemsize: b. deduplicates: a token crosses to a rank once.
    """

    sizes: MeshSizes
    sequences: int
    part: int
    width: int
    itemsize: int
    deduplicates: bool

    @property
    def tokens(self) -> int:
        """T."""
        return self.gathered_tokens // self.sizes.tp

    @property
    def gathered_tokens(self) -> int:
        """U."""
        return self.sequences * self.part

    @property
    def stream(self) -> int:
        """Bytes of the residual stream: b T D."""
        return self.itemsize * self.tokens * self.width

    @property
    def gathered(self) -> int:
        """Bytes of a block's gathered input: b U D."""
        return self.stream * self.sizes.tp


@dataclass(frozen=True)
class Kept:
    """Bytes of a sublayer. everything: what it keeps without recomputation, its norm's included. selective: results of
    products, attention, experts, scans and exchanges, which selective recomputation keeps. working: the most that its
    backward holds besides, at one time.
    """

    everything: int
    selective: int
    working: int

    def __add__(self, other: Kept) -> Kept:
        return Kept(self.everything + other.everything, self.selective + other.selective,
                    max(self.working, other.working))


def make_forward(outline: Outline) -> Forward:
    """The largest forward of a recipe."""
    recipe, sizes, data = outline.recipe, outline.sizes, outline.recipe.data
    return Forward(
        sizes, forward_size(data, sizes.batch), data.seq_len // sizes.cp,
        recipe.model.d_model, 4 if recipe.training.dtype == "float32" else 2,
        recipe.parallel.dedup_dispatch,
    )


def kept_by_layer(outline: Outline, layer: int, forward: Forward) -> Kept:
    """Of all branches of a layer, without the layer's input."""
    kept = Kept(0, 0, 0)
    for sublayer in outline.architecture.layers[layer].branches:
        kept += _norm(outline, forward) + _BLOCKS[sublayer.kind](sublayer, forward)
    if forward.itemsize == 4:  # the norm keeps the layer's input itself, all branches the same
        shared = len(outline.architecture.layers[layer].branches) - 1
        kept = Kept(kept.everything - shared * forward.stream, kept.selective, kept.working)
    return kept


def _norm(outline: Outline, forward: Forward) -> Kept:
    """Its input in float32, statistics, and its result, which the block multiplies by matrices."""
    statistics = 4 if outline.recipe.model.norm == "rmsnorm" else 8
    wide = 4 * forward.tokens * forward.width
    result = 0 if forward.sizes.tp > 1 else forward.stream
    return Kept(wide + statistics * forward.tokens + result, 0, 3 * wide)


def _boundary(forward: Forward) -> tuple[int, int]:
    """What tp adds around a block: kept in everything, and selectively (input gathered, output before and after)."""
    if forward.sizes.tp == 1:
        return 0, 0
    return forward.gathered, forward.gathered + forward.stream


def _attention(sublayer: Sublayer, forward: Forward) -> Kept:
    """Attention keeps its arguments and its result; norms of queries and keys their input in float32 and statistics."""
    settings, tp, cp, U = sublayer.settings, forward.sizes.tp, forward.sizes.cp, forward.gathered_tokens
    P, heads = settings.head_dim, settings.num_heads // tp
    made, used = _kv_heads(settings.num_heads, settings.num_kv_heads, tp)
    if cp > 1 and heads % cp == 0:
        used *= cp // gcd(used, cp)  # repeated, so that each rank of cp gets some
    head = forward.itemsize * U * P  # bytes of one head
    everything = 2 * (heads + used) * head + 4 * U * heads
    if settings.qk_norm != "none":
        normed = heads + made
        everything += 4 * U * P * normed + 4 * U * (normed if settings.qk_norm == "head" else 2)
    if settings.rope:
        everything += 8 * forward.part * (round(P * settings.rope_fraction) // 2)
    if cp > 1:
        everything += heads * head  # the result before heads are swapped back for tokens
    boundary, selective = _boundary(forward)
    selective += (heads + 2 * made) * head + heads * head + 4 * U * heads + forward.gathered
    return Kept(everything + boundary, selective, (3 * heads + 4 * used) * head + 2 * forward.gathered)


def _kv_heads(num_heads: int, num_kv_heads: int, tp: int) -> tuple[int, int]:
    """Key-value heads that a rank computes, and those that its query heads read."""
    if num_kv_heads % tp == 0:
        return num_kv_heads // tp, num_kv_heads // tp
    per_rank, per_group = num_heads // tp, num_heads // num_kv_heads
    return num_kv_heads, max(((rank + 1) * per_rank - 1) // per_group - rank * per_rank // per_group + 1
                             for rank in range(tp))


def _ffn(sublayer: Sublayer, forward: Forward) -> Kept:
    return _feed_forward(sublayer.settings.d_ff, sublayer.settings.activation, forward)


def _feed_forward(d_ff: int, activation: str, forward: Forward) -> Kept:
    hidden = forward.itemsize * forward.gathered_tokens * d_ff // forward.sizes.tp
    # swiglu: gate, up, silu(gate) and the product. The others: what the derivative is made of, and the result.
    layers = {"swiglu": 4, "gelu": 2, "relu": 1, "relu2": 2}[activation]
    products = 2 if activation == "swiglu" else 1
    gathered, selective = _boundary(forward)
    return Kept(layers * hidden + gathered, products * hidden + forward.gathered + selective,
                3 * hidden + 2 * forward.gathered)


def _moe(sublayer: Sublayer, forward: Forward) -> Kept:
    settings, b, T, D = sublayer.settings, forward.itemsize, forward.tokens, forward.width
    M, choices, layers = routed_rows(sublayer, forward), T * settings.top_k, 2 if settings.activation == "swiglu" else 1
    # The router's input in float32, its logits; experts and gates of choices; rows in order, their tokens and gates.
    logits, hidden = 4 * T * settings.num_experts, layers * b * M * settings.d_expert
    everything = logits + (0 if b == 4 else 4 * T * D) + 12 * choices + 28 * M + 8 * T + hidden
    everything += forward.stream if forward.sizes.tp > 1 else 0  # its own input, not one that a block gathers
    selective, passing = logits + hidden + forward.stream, forward.stream
    if forward.sizes.ep > 1:
        passing = b * D * travelling_rows(sublayer, forward)
        everything += (1 if forward.deduplicates else 2) * passing + 16 * M
        selective += 3 * passing
    working = (layers + 1) * b * M * settings.d_expert + b * M * D + 2 * passing
    kept = Kept(everything, selective, working)
    if settings.num_shared_experts:
        kept += _feed_forward(settings.num_shared_experts * settings.d_expert, settings.activation, forward)
        if settings.shared_expert_router:
            kept += Kept(forward.stream + b * T, b * T, 0)
    if settings.output_norm:
        kept += Kept(4 * T * D + 8 * T, 0, 8 * T * D)
    return kept


def routed_rows(sublayer: Sublayer, forward: Forward) -> int:
    """M: rows of the tokens on a rank, where capacity cuts no expert more than any other."""
    settings, sequences = sublayer.settings, forward.sequences
    chosen = forward.tokens * settings.top_k
    if settings.router != "expert_choice" and settings.capacity_factor is None:
        return chosen
    factor, parts = settings.capacity_factor or 1.0, forward.sizes.cp * forward.sizes.tp
    group = forward.tokens * parts // sequences
    limit = max(1, int(factor * group * settings.top_k / settings.num_experts))
    rows = sequences * settings.num_experts * limit // parts
    return rows if settings.router == "expert_choice" else min(rows, chosen)


def travelling_rows(sublayer: Sublayer, forward: Forward) -> int:
    """Rows of width D that a rank hands to the ranks of experts, itself among them; as many come to it."""
    rows, settings = routed_rows(sublayer, forward), sublayer.settings
    if not forward.deduplicates:
        return rows
    visits = mean_visits(rows / forward.tokens, settings.num_experts, forward.sizes.ep)
    return min(rows, round(forward.tokens * visits))


def _mamba1(sublayer: Sublayer, forward: Forward) -> Kept:
    """x before and after the convolution, z, silu(z), the scan's result and what is made of both; dt twice."""
    settings, b, U = sublayer.settings, forward.itemsize, forward.gathered_tokens
    inner = inner_width(forward.width, settings) // forward.sizes.tp
    small = settings.dt_rank + 2 * settings.d_state
    channel, states = b * U * inner, 4 * inner * settings.d_state * forward.sequences
    boundary, selective = _boundary(forward)
    runs = -(-forward.part // SCAN_RUN)
    everything = 6 * channel + 8 * U * inner + b * U * small + runs * states
    working = 5 * channel + 8 * U * inner + 2 * forward.gathered
    if settings.inner_norms:
        everything += 4 * U * small + 12 * U
    if (cp := forward.sizes.cp) > 1:  # time that has passed by each token, and the states and decays of all parts
        everything += 4 * U * inner + 3 * (cp + 1) * states
        working = max(working, 3 * states * settings.chunk_size + 8 * U * inner)
    selective += 3 * channel + b * U * small + channel + (1 + runs) * states + forward.gathered
    return Kept(everything + boundary, selective, working)


def _mamba2(sublayer: Sublayer, forward: Forward) -> Kept:
    """x, B and C before and after their convolutions, z, the scan's result and its norm's; dt twice, in float32."""
    settings, b, U = sublayer.settings, forward.itemsize, forward.gathered_tokens
    tp, cp = forward.sizes.tp, forward.sizes.cp
    inner = inner_width(forward.width, settings) // tp
    heads = inner // settings.head_dim
    made, used = _kv_heads(heads * tp, settings.num_groups, tp)
    channel, group = b * U * inner, b * U * settings.d_state
    everything = 5 * channel + 2 * (made + used) * group + 8 * U * heads
    if settings.num_groups % tp:  # groups span ranks: their norm is made of small operations in float32
        everything += 20 * U * inner - 2 * channel
    states = 4 * forward.sequences * inner * settings.d_state
    if cp > 1:  # what the entering state adds to each token, and the states of all parts
        everything += 4 * U * inner + 8 * U * heads + (cp + 1) * states
    boundary, selective = _boundary(forward)
    selective += 3 * channel + 2 * made * group + b * U * heads + states + forward.gathered
    return Kept(everything + boundary, selective, 4 * channel + 4 * used * group + 2 * forward.gathered)


SCAN_RUN = 32
"""Tokens after which Mamba-1's kernel keeps a state."""

_BLOCKS = {"attention": _attention, "ffn": _ffn, "moe": _moe, "mamba1": _mamba1, "mamba2": _mamba2}
