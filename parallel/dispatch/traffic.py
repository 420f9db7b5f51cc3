"""What a dispatch sends over the network."""

from torch import Tensor


def bytes_to_others(rows: Tensor, sent: list[int], received: list[int], rank: int) -> int:
    """Bytes of activations that this rank sends to other ranks in one forward of a dispatch.

    rows: [_, D], of the width and dtype that travels. sent: rows for each rank of the group; received: from each. Those
    sent go out, those received go back as the experts' outputs; what stays on this rank (`rank`, by its place in the
    group) costs nothing. The backward sends as much again, a gradient for each row. Not counted: the numbers of rows,
    8 bytes a pair of expert and rank, and what else a dispatcher says of its rows.
    """
    num_rows = sum(sent) - sent[rank] + sum(received) - received[rank]
    return num_rows * rows.shape[1] * rows.element_size()
