"""How many nodes a layout takes."""

from __future__ import annotations

from dataclasses import dataclass

from framework.errors import UserError


@dataclass(frozen=True)
class Shape:
    """Nodes, and ranks on each of them; a rank has a GPU of its own."""

    nodes: int
    ranks_per_node: int

    @property
    def world(self) -> int:
        return self.nodes * self.ranks_per_node


def shape_of(world: int, gpus_per_node: int, what: str) -> Shape:
    """The nodes for a world: one and as many of its GPUs where it fits, else whole nodes.

    what: has that world, as a message names it. Raises UserError, with the arithmetic, for a world that leaves a node
    half used.
    """
    if world <= gpus_per_node:
        return Shape(1, world)
    nodes, rest = divmod(world, gpus_per_node)
    if rest:
        lower = nodes * gpus_per_node
        raise UserError(f"{what}: {world} ranks = {nodes} x {gpus_per_node} GPUs + {rest} ranks; allowed: up to "
                        f"{gpus_per_node} ranks, or a multiple of it (nearest: {lower} and {lower + gpus_per_node})")
    return Shape(nodes, gpus_per_node)
