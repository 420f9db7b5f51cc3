"""Memory that the ranks of a group show each other, for a dispatch of tokens.

E experts, R ranks, N rows for which a rank has room, V places for tokens of which these are.
"""

from functools import cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

ALIGNMENT = 128


class Layout(NamedTuple):
    """Where things lie in the memory that each rank shows to its peers; offsets are in bytes, the same on all ranks.

    num_tokens: of one rank, at most. num_choices: experts of one rank that a token visits, at most. row_bytes: of a
    token. deduplicated: a token has one place on a rank, else one for each row.
    """

    num_ranks: int
    num_experts: int
    num_tokens: int
    num_choices: int
    row_bytes: int
    deduplicated: bool

    @property
    def num_rows(self) -> int:
        """N: rows that a rank may get."""
        return self.num_ranks * self.num_tokens * self.num_choices

    @property
    def num_places(self) -> int:
        """V: places for tokens."""
        return self.num_ranks * self.num_tokens if self.deduplicated else self.num_rows

    @property
    def num_bytes(self) -> int:
        """Signals first, then both halves."""
        return self.offset("end", turn=1)

    def offset(self, name: str, turn: int) -> int:
        """Where a region begins that is used in this turn."""
        regions = _regions(self)
        return _aligned(4 * self.num_ranks) + turn % 2 * regions["end"][0] + regions[name][0]

    def view(self, memory: Tensor, name: str, turn: int, dtype: torch.dtype) -> Tensor:
        """This rank's own region."""
        return memory[self.offset(name, turn):][:_regions(self)[name][1]].view(dtype)


class Peers(NamedTuple):
    """Memory of a group of ranks, as one of them sees it.

    memory: uint8, its own, of layout.num_bytes; zero when its first turn begins. pointers_R: int64, the addresses at
    which it finds everyone's, its own too; on its device. rank: its number among them.
    """

    memory: Tensor
    pointers_R: Tensor
    rank: int
    layout: Layout

    def own(self, turn: int) -> tuple[Tensor, Tensor, int, int, list[int]]:
        """What operators begin with: all of it as they take it, and the turn. RuntimeError as `refuse_capture`."""
        refuse_capture()
        return self.memory, self.pointers_R, self.rank, turn, [int(size) for size in self.layout]


def refuse_capture() -> None:
    """RuntimeError while a CUDA graph is captured: replayed, it would come with the turn of its capture again."""
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("dispatch through symmetric memory counts its turns on the host and cannot be captured in a "
                           "CUDA graph; allowed: to run it outside of one")


@cache
def _regions(layout: Layout) -> dict[str, tuple[int, int]]:
    """Of a half: where each region begins, and its bytes; the end is one of no bytes."""
    sizes = {
        "counts": 4 * layout.num_ranks * layout.num_experts,
        "gates": 4 * layout.num_rows,
        "copies": 4 * layout.num_rows if layout.deduplicated else 0,
        "arrived": 4 * layout.num_places if layout.deduplicated else 0,
        "tokens": layout.row_bytes * layout.num_places,
        "end": 0,
    }
    starts = accumulate(map(_aligned, sizes.values()), initial=0)
    return {name: (start, size) for (name, size), start in zip(sizes.items(), starts, strict=False)}


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
