"""Which tokens of a sequence are whose: rank r of n holds the r-th of n equal, consecutive parts.

B batch, S sequence.
"""

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh


def part_size(seq_len: int, cp: DeviceMesh) -> int:
    """Tokens of a part. Raises ValueError where the sequence does not divide."""
    if seq_len % cp.size():
        raise ValueError(f"cp={cp.size()} must divide the {seq_len} tokens of a sequence")
    return seq_len // cp.size()


def own_part(x_BS: Tensor | None, cp: DeviceMesh) -> Tensor | None:
    """This rank's part [B, S/cp, ...] of what all ranks hold whole, [B, S, ...]; None stays None.

    Raises ValueError where S does not divide by cp.
    """
    if x_BS is None:
        return None
    size = part_size(x_BS.shape[1], cp)
    return x_BS.narrow(1, cp.get_local_rank() * size, size)
