"""A sequence in consecutive parts, one a rank of cp, and what mixes its tokens across them.

`part` says which tokens are whose, `ulysses` and `ring` are attention, `state_passing` hands a scan's state on,
`convolution` its inputs, `neighbours` is how ranks pass tensors to each other.
"""

from parallel.context.convolution import convolve_parts
from parallel.context.part import own_part, part_size
from parallel.context.ring import ring_attend
from parallel.context.state_passing import scan_parts, ssd_parts
from parallel.context.ulysses import ulysses_attend

__all__ = [
    "convolve_parts", "own_part", "part_size", "ring_attend", "scan_parts", "ssd_parts", "ulysses_attend",
]
