"""Causal grouped-query attention.

B batch, S sequence (of queries), L keys seen so far, D model width, H query heads, G key and value heads, P head width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.model.context import Context
from framework.model.linear import Linear, all_of
from framework.model.norm import RMSNorm
from framework.model.rope import cosine_and_sine, frequencies
from framework.parametrization.roles import Role
from kernels import rotate_halves


class AttentionCache:
    """Keys and values of a growing sequence, in two buffers [B, max_len, G, P] allocated once."""

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> None:
        self.length = 0
        self.k_BLGP = torch.empty(shape, device=device, dtype=dtype)
        self.v_BLGP = torch.empty(shape, device=device, dtype=dtype)

    def append(self, k_BSGP: Tensor, v_BSGP: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values; return all so far, [B, length, G, P] each."""
        start, self.length = self.length, self.length + k_BSGP.shape[1]
        assert self.length <= self.k_BLGP.shape[1], "more tokens than the cache was made for"
        self.k_BLGP[:, start : self.length] = k_BSGP
        self.v_BLGP[:, start : self.length] = v_BSGP
        return self.k_BLGP[:, : self.length], self.v_BLGP[:, : self.length]


class Attention(nn.Module):
    """out(softmax(scale * q k^T + causal mask) v), with the options of the recipe's attention section.

    settings: the resolved section (num_heads, num_kv_heads and head_dim filled). scale: factor on q.k, or None for
    head_dim ** -0.5. Query head h reads key and value head h // (H / G) (https://arxiv.org/abs/2305.13245).
    Parallelism from outside replaces `attend` where ranks hold parts of a sequence, and `own_kv_heads`, which picks
    the key and value heads [B, S, G, P] that the query heads here read, where all ranks hold all of them.
    Query and key norms come before the rotary embedding; `head` shares one weight [P] among heads, `full` normalises
    the concatenated heads.
    """

    def __init__(self, d_model: int, settings, norm_eps: float, scale: float | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.scale = settings.head_dim**-0.5 if scale is None else scale
        q_width, kv_width = settings.num_heads * settings.head_dim, settings.num_kv_heads * settings.head_dim
        self.attend: Callable[..., Tensor] = attend
        self.own_kv_heads: Callable[[Tensor], Tensor] = all_of
        self.q = Linear(d_model, q_width, Role.ATTENTION_Q, bias=settings.qkv_bias)
        self.k = Linear(d_model, kv_width, Role.ATTENTION_K, bias=settings.qkv_bias)
        self.v = Linear(d_model, kv_width, Role.ATTENTION_V, bias=settings.qkv_bias)
        self.out = Linear(q_width, d_model, Role.ATTENTION_OUT, writes_residual=True)
        if settings.qk_norm != "none":
            per_head = settings.qk_norm == "head"
            self.q_norm = RMSNorm(settings.head_dim if per_head else q_width, norm_eps)
            self.k_norm = RMSNorm(settings.head_dim if per_head else kv_width, norm_eps)

    def forward(self, x_BSD: Tensor, context: Context, cache: AttentionCache | None = None) -> Tensor:
        """x_BSD -> y_BSD of the same dtype; with a cache, x follows the tokens that it holds."""
        start = 0 if cache is None else cache.length
        q_BSHP, k_BSGP, v_BSGP = self._heads(x_BSD)
        if self.settings.rope:
            position_BS = context.position_BS
            if position_BS is None:
                position_BS = torch.arange(start, start + x_BSD.shape[1], device=x_BSD.device)[None]
            turn = cosine_and_sine(position_BS, frequencies(self.settings, x_BSD.device), q_BSHP.dtype)
            q_BSHP, k_BSGP = rotate_halves(q_BSHP, *turn), rotate_halves(k_BSGP, *turn)
        if cache is not None:
            assert context.document_BS is None, "a cache holds one document a row"
            k_BSGP, v_BSGP = cache.append(k_BSGP, v_BSGP)
        y_BSHP = self.attend(q_BSHP, k_BSGP, v_BSGP, self.scale, self.settings.window, context.document_BS)
        return self.out(y_BSHP.flatten(2))

    def _heads(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, normalised where asked; as many heads as the weights here have."""
        q, k, v = self.q(x_BSD), self.k(x_BSD), self.v(x_BSD)
        if self.settings.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (projected.unflatten(-1, (-1, self.settings.head_dim)) for projected in (q, k, v))
        if self.settings.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        return q, self.own_kv_heads(k), self.own_kv_heads(v)

    def new_cache(self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype) -> AttentionCache:
        """An empty cache for sequences of at most max_len tokens."""
        head_dim = self.settings.head_dim
        return AttentionCache((batch_size, max_len, self.k.weight.shape[0] // head_dim, head_dim), device, dtype)


def attend(
    q_BSHP: Tensor, k_BLGP: Tensor, v_BLGP: Tensor, scale: float, window: int | None, document_BS: Tensor | None
) -> Tensor:
    """Causal softmax attention of the last S of L tokens to all L: [B, S, H, P].

    window: a query sees that many tokens, itself included; None: all before it. document_BS: int64 [B, L], tokens of
    different value do not see each other; None: all do.
    """
    num_queries, num_keys = q_BSHP.shape[1], k_BLGP.shape[1]
    windowed = window is not None and window < num_keys
    masked = windowed or document_BS is not None or 1 < num_queries < num_keys
    mask = _mask(num_queries, num_keys, window, document_BS, q_BSHP.device) if masked else None
    y_BHSP = F.scaled_dot_product_attention(
        q_BSHP.transpose(1, 2), k_BLGP.transpose(1, 2), v_BLGP.transpose(1, 2), attn_mask=mask, scale=scale,
        is_causal=mask is None and num_queries > 1, enable_gqa=q_BSHP.shape[2] != k_BLGP.shape[2],
    )
    return y_BHSP.transpose(1, 2)


def _mask(
    num_queries: int, num_keys: int, window: int | None, document_BS: Tensor | None, device: torch.device
) -> Tensor:
    """Which keys a query sees: bool [S, L], or [B, 1, S, L] where documents differ."""
    key_L = torch.arange(num_keys, device=device)
    distance_SL = key_L[num_keys - num_queries :, None] - key_L
    mask = distance_SL >= 0
    if window is not None:
        mask = mask & (distance_SL < window)
    if document_BS is not None:
        same_document_BSL = document_BS[:, num_keys - num_queries :, None] == document_BS[:, None, :]
        mask = mask & same_document_BSL[:, None]
    return mask
