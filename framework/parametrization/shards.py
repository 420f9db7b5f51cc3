"""Which part of a parameter this rank holds."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class Shards:
    """The local part of a parameter that is a plain tensor or a DTensor.

    local: the tensor that this rank holds. indices: per dim of the whole parameter, int64, the indices held.
    """

    def __init__(self, parameter: Tensor) -> None:
        self.indices = [torch.arange(size) for size in parameter.shape]
        self.local = parameter.detach()
        if isinstance(parameter, DTensor):
            self.local = self.local.to_local()
            self._split(parameter)
        assert [len(index) for index in self.indices] == list(self.local.shape), "an unknown way of sharding"

    def select(self, full: Tensor, first_dim: int = 0) -> Tensor:
        """The held part of a tensor whose dims are those of the parameter from first_dim on."""
        for dim, index in enumerate(self.indices[first_dim:]):
            if len(index) < full.shape[dim]:
                full = full.index_select(dim, index)
        return full

    def _split(self, parameter: DTensor) -> None:
        """Split each dim's indices as `torch.chunk` does, mesh axis by mesh axis.

        An axis that FSDP put in front of expert or tensor parallelism is strided: it splits what these have left.
        """
        coordinate = parameter.device_mesh.get_coordinate()
        axes = [(axis, place) for axis, place in enumerate(parameter.placements) if hasattr(place, "dim")]
        for axis, place in sorted(axes, key=lambda item: hasattr(item[1], "split_factor")):
            parts = self.indices[place.dim].chunk(parameter.device_mesh.size(axis))
            held = coordinate[axis]
            self.indices[place.dim] = parts[held] if held < len(parts) else self.indices[place.dim][:0]
