"""From tokens to the residual stream, and from it to logits or the loss.

B batch, S sequence, T = B * S tokens, D model width, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.parametrization.roles import Declaration, Role, add_parameter
from kernels import linear_cross_entropy


class Embedding(nn.Module):
    """weight[token] * multiplier; `weight` float32 [V, D]. fan_in: what the init rule counts, 1 for a lookup.

    Parallelism from outside replaces `look_up` where a rank holds part of the vocabulary.
    """

    def __init__(self, vocab_size: int, d_model: int, multiplier: float, fan_in: int) -> None:
        super().__init__()
        self.multiplier = multiplier
        self.look_up: Callable[[Tensor, Tensor], Tensor] = F.embedding
        add_parameter(self, "weight", (vocab_size, d_model), Declaration(Role.EMBEDDING, fan_in))

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """int64 [B, S] -> [B, S, D] in the weight's dtype, which becomes that of all activations."""
        x_BSD = self.look_up(tokens_BS, self.weight)
        return x_BSD if self.multiplier == 1.0 else x_BSD * self.multiplier


class Unembedding(nn.Module):
    """logits = multiplier * weight x; `weight` float32 [V, D].

    Parallelism from outside replaces `cross_entropy` where a rank holds part of the vocabulary.
    """

    def __init__(self, vocab_size: int, d_model: int, multiplier: float) -> None:
        super().__init__()
        self.multiplier = multiplier
        self.cross_entropy: Callable[..., Tensor] = linear_cross_entropy
        add_parameter(self, "weight", (vocab_size, d_model), Declaration(Role.UNEMBEDDING, d_model))

    def forward(self, x_BSD: Tensor, targets_BS: Tensor | None = None) -> Tensor:
        """Without targets the logits [B, S, V], with int64 targets the scalar sum of cross entropies over targets that
        are not -100; both in float32 (float64 where x is)."""
        if targets_BS is not None:
            return self.cross_entropy(x_BSD.flatten(0, 1), self.weight, targets_BS.flatten(), self.multiplier)
        logits_BSV = F.linear(x_BSD, self.weight.to(x_BSD.dtype))
        return logits_BSV.to(torch.promote_types(x_BSD.dtype, torch.float32)) * self.multiplier
