"""How a module is split over ranks. Knows torch.distributed and kernels; knows no recipe and no model class.

`mesh` names the axes, `launcher` starts ranks, which find their `place` and join the `world`, `collectives` are the
differentiable boundaries, `local_view` shows a forward its local shards, `dispatch` carries tokens to their experts,
`fsdp` shards parameters, `gradients` measures and clips them, `pool` keeps ranks alive for tests.
"""

from parallel.lazy import lazily

_HOMES = {
    "AllToAllDispatcher": "dispatch",
    "DeduplicatedDispatcher": "dispatch",
    "Mesh": "mesh",
    "MeshSizes": "mesh_sizes",
    "Place": "place",
    "RankPool": "pool",
    "SymmetricMemory": "dispatch",
    "SymmetricMemoryDispatcher": "dispatch",
    "choose_device": "world",
    "clip_divisor": "gradients",
    "find_place": "place",
    "first_nonfinite_gradient": "gradients",
    "gradient_norm": "gradients",
    "join": "world",
    "launch": "launcher",
    "set_gradient_sync": "fsdp",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
