"""The mesh: which ranks each axis and view joins, on eight ranks, and which sizes are refused."""

import itertools

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel import Mesh, MeshSizes
from parallel.collectives import all_sum

VIEWS = ("pp", "dp_replicate", "dp_shard", "cp", "tp", "fsdp", "expert_dp", "ep", "batch", "sequence", "loss", "stage")


def members(sizes: MeshSizes) -> dict[str, list[int]]:
    """Of each view, the ranks that are joined with this one, in order."""
    mesh = Mesh(sizes, "cpu")
    found = {view: getattr(mesh, view).mesh.tolist() for view in VIEWS}
    for view in VIEWS:
        axis = getattr(mesh, view)
        assert found[view][axis.get_local_rank()] == dist.get_rank()
        assert axis.size() == dist.get_world_size(axis.get_group()) == len(found[view])
    for view, inner in {"dense_shards": "fsdp", "expert_shards": "expert_dp"}.items():
        axes = ("dp_replicate", inner)
        axes = axes if sizes.dp_replicate > 1 else axes[1:]
        assert getattr(mesh, view).mesh_dim_names == axes
        assert set(getattr(mesh, view).mesh.flatten().tolist()) == {
            rank for rank in range(sizes.world) if rank in found["stage"] and _shares(found, rank, mesh, axes)
        }
    # Each group can talk.
    total = all_sum(torch.tensor(dist.get_rank()), mesh.sequence.get_group())
    assert total.item() == sum(found["sequence"])
    return found


def _shares(found: dict, rank: int, mesh: Mesh, axes: tuple[str, ...]) -> bool:
    inner = mesh.tp.size() if axes[-1] == "fsdp" else mesh.ep.size()
    same_inner = rank % inner == dist.get_rank() % inner
    return same_inner and (len(axes) == 2 or rank in _copy(mesh))


def _copy(mesh: Mesh) -> range:
    size = mesh.sizes.one_copy
    start = dist.get_rank() // size * size
    return range(start, start + size)


def expected(sizes: MeshSizes) -> list[dict[str, list[int]]]:
    """The same from the definition: coordinates of all ranks, and the axes along which a view's members differ."""
    dense = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
    experts = ("pp", "dp_replicate", "expert_dp", "ep")
    varying = {
        "fsdp": ("dp_shard", "cp"), "batch": ("dp_replicate", "dp_shard"), "sequence": ("cp", "tp"),
        "loss": ("dp_replicate", "dp_shard", "cp"), "stage": ("dp_replicate", "dp_shard", "cp", "tp"),
    }
    rows = []
    for rank in range(sizes.world):
        row = {}
        for view in VIEWS:
            axes = experts if view in ("expert_dp", "ep") else dense
            places = list(itertools.product(*(range(getattr(sizes, axis)) for axis in axes)))
            fixed = [position for position, axis in enumerate(axes) if axis not in varying.get(view, (view,))]
            own = places[rank]
            row[view] = [other for other, place in enumerate(places) if all(place[f] == own[f] for f in fixed)]
        rows.append(row)
    return rows


@pytest.mark.parametrize("sizes", [
    MeshSizes(dp_replicate=2, dp_shard=2, tp=2, ep=2), MeshSizes(dp_shard=2, cp=2, tp=2, ep=4),
    MeshSizes(pp=2, dp_replicate=2, cp=2, ep=2), MeshSizes(pp=2, dp_shard=2, tp=2), MeshSizes(dp_shard=8, ep=8),
    MeshSizes(dp_replicate=8), MeshSizes(pp=2, cp=2, tp=2, ep=4),
], ids=lambda sizes: "x".join(f"{axis}{degree}" for axis, degree in vars(sizes).items() if degree > 1))
def test_views_join_the_ranks_that_their_definition_says(ranks, sizes):
    assert ranks.run(8, members, sizes) == expected(sizes)


def wrong_world() -> str:
    try:
        Mesh(MeshSizes(dp_shard=4), "cpu")
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "accepted"


def test_a_world_of_another_size_is_refused(ranks):
    assert all("4" in answer and "2" in answer for answer in ranks.run(2, wrong_world))


degrees = st.integers(1, 6)


@settings(max_examples=60, deadline=None)
@given(degrees, degrees, degrees, degrees, degrees, st.integers(1, 40))
def test_sizes_multiply_up_and_ep_must_divide_one_copy(dp_replicate, dp_shard, cp, tp, pp, ep):
    axes = dict(dp_replicate=dp_replicate, dp_shard=dp_shard, cp=cp, tp=tp, pp=pp, ep=ep)
    one_copy = dp_shard * cp * tp
    if one_copy % ep:
        with pytest.raises(ValueError, match=f"ep={ep} must divide"):
            MeshSizes(**axes)
    else:
        sizes = MeshSizes(**axes)
        assert sizes.world == dp_replicate * one_copy * pp
        assert sizes.expert_dp * sizes.ep == one_copy


@pytest.mark.parametrize("axis", ["dp_replicate", "dp_shard", "cp", "tp", "pp", "ep"])
def test_a_degree_below_one_is_refused(axis):
    with pytest.raises(ValueError, match=f"{axis}=0"):
        MeshSizes(**{axis: 0})
