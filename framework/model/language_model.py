"""The language model: embedding, residual layers, final norm, unembedding."""

from typing import Any

import torch
from torch import Tensor, nn

from framework.model.context import Context
from framework.model.embedding import Embedding, Unembedding


class LanguageModel(nn.Module):
    """Maps tokens to logits, or to the summed cross entropy of targets.

    tied: the unembedding's weight is the embedding's. num_residual_branches: sublayers that write to the residual
    stream, of the whole model.

    Pipeline parallelism from outside leaves only a rank's layers and ends (None for the others), under their names, and
    sets `stages`, which then run instead of the model.
    """

    def __init__(
        self, embedding: Embedding, layers: list[nn.Module], final_norm: nn.Module, unembedding: Unembedding,
        tied: bool, num_residual_branches: int,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers = nn.ModuleDict({str(index): layer for index, layer in enumerate(layers)})
        self.final_norm = final_norm
        self.unembedding = unembedding
        self.tied = tied
        self.d_model = embedding.weight.shape[1]
        self.num_residual_branches = num_residual_branches
        self.stages: dict[int, nn.Module] = {}
        self._tie()

    def forward(
        self, tokens_BS: Tensor, context: Context, targets_BS: Tensor | None = None, cache: list | None = None
    ) -> Tensor:
        """tokens_BS: int64 [B, S]. Returns logits [B, S, V] without targets, else the scalar sum of the targets' cross
        entropies in nats (int64 [B, S]; -100 is left out); float32, or float64 where the weights are.

        Auxiliary losses are attached to the sublayers' outputs, not returned: a backward with gradient g of the scalar
        adds their gradients once, whatever g is. cache: from `new_cache`; the tokens follow those that it holds.
        """
        x_BSD = self.embedding(tokens_BS)
        caches = [None] * len(self.layers) if cache is None else cache
        for layer, own in zip(self.layers.values(), caches, strict=True):
            x_BSD = layer(x_BSD, context, own)
        return self.unembedding(self.final_norm(x_BSD), targets_BS)

    def new_cache(self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype) -> list[Any]:
        """An empty cache per layer, for sequences of at most max_len tokens and activations of the given dtype."""
        return [layer.new_cache(batch_size, max_len, device, dtype) for layer in self.layers.values()]

    def _tie(self) -> None:
        if self.tied and self.embedding is not None and self.unembedding is not None:
            self.unembedding.weight = self.embedding.weight

    def _apply(self, fn, recurse: bool = True) -> "LanguageModel":
        """Moving from the meta device replaces each parameter on its own, which would untie a tied one."""
        super()._apply(fn, recurse)
        self._tie()
        return self
