"""The process groups of a rank's runs, which follow each other on one layout."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from framework.training.peers import Peers
from framework.training.preconditions import mesh_sizes
from parallel import Mesh

if TYPE_CHECKING:
    from framework.recipe.schema import Parallel


class Groups:
    """Each is made when it is first asked for, which is collective, and once, as every one costs sockets and buffers.
    """

    def __init__(self, layout: Parallel, device_type: str) -> None:
        self.layout, self.device_type = layout, device_type

    @cached_property
    def peers(self) -> Peers:
        """For what the ranks tell each other between steps."""
        return Peers()

    @cached_property
    def writers(self) -> Peers:
        """For the thread that writes checkpoints."""
        return Peers()

    @cached_property
    def mesh(self) -> Mesh:
        """The axes of the layout."""
        return Mesh(mesh_sizes(self.layout), self.device_type)
