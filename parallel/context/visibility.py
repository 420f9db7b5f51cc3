"""Which keys a query sees, by their places in the whole sequence; cut into tiles small enough to hold.

B batch, S sequence, Q queries, K keys of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

QUERIES_OF_A_TILE, KEYS_OF_A_TILE = 256, 1024


class Tile(NamedTuple):
    """Some queries and some keys, counted from the first of their own parts; mask: bool [B or 1, 1, 1, Q, K], True
    where a query sees a key, or None where each sees all."""

    queries: slice
    keys: slice
    mask: Tensor | None


@dataclass(frozen=True)
class Visibility:
    """Causal; `window`: a query sees that many tokens, itself included; tokens of different `document_BS` (of the
    whole sequence) do not see each other."""

    window: int | None
    document_BS: Tensor | None

    def tiles(self, queries: range, keys: range, device: torch.device) -> Iterator[Tile]:
        """Tiles that hold every pair of a query and a key that it sees, and as few others as window and causality
        allow."""
        for query in range(0, len(queries), QUERIES_OF_A_TILE):
            tile_queries = queries[query : query + QUERIES_OF_A_TILE]
            seen = self._seen(tile_queries, keys)
            for key in range(0, len(seen), KEYS_OF_A_TILE):
                tile_keys = seen[key : key + KEYS_OF_A_TILE]
                yield Tile(
                    slice(query, query + len(tile_queries)),
                    slice(tile_keys.start - keys.start, tile_keys.stop - keys.start),
                    self._mask(tile_queries, tile_keys, device),
                )

    def _seen(self, queries: range, keys: range) -> range:
        """The run of `keys` of which every one is seen by some of `queries` as far as documents allow; maybe empty."""
        start = keys.start if self.window is None else max(keys.start, queries.start - self.window + 1)
        return range(start, min(keys.stop, queries.stop))

    def _mask(self, queries: range, keys: range, device: torch.device) -> Tensor | None:
        all_past = keys[-1] <= queries[0]
        all_near = self.window is None or queries[-1] - keys[0] < self.window
        if all_past and all_near and self.document_BS is None:
            return None
        query_Q = torch.arange(queries.start, queries.stop, device=device)
        distance_QK = query_Q[:, None] - torch.arange(keys.start, keys.stop, device=device)
        mask_BQK = (distance_QK >= 0)[None]
        if self.window is not None:
            mask_BQK = mask_BQK & (distance_QK < self.window)
        if self.document_BS is not None:
            of_query_BQ, of_key_BK = (self.document_BS[:, places.start : places.stop] for places in (queries, keys))
            mask_BQK = mask_BQK & (of_query_BQ[:, :, None] == of_key_BK[:, None])
        return mask_BQK[:, None, None]
