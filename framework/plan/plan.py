"""A recipe on a cluster: what a rank holds, sends and computes, how long a step takes, and whether it fits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from framework.errors import UserError
from framework.plan.machine import Cluster
from framework.plan.memory import Memory, memory_on
from framework.plan.outline import Outline
from framework.plan.timing import ASSUMPTIONS, Timing, time_of
from framework.plan.traffic import Traffic, traffic_on
from framework.training.preconditions import mesh_sizes

if TYPE_CHECKING:
    from framework.recipe import Loaded

RESERVED = 3e9
"""Assumed, bytes: what CUDA, NCCL and cuBLAS take of a GPU before the first tensor."""

FRAGMENTATION = 1.05
"""Assumed: what PyTorch's allocator holds, over what tensors take."""


@dataclass(frozen=True)
class Plan:
    """memory: of each rank of pp. traffic: of the rank of pp that sends longest. needed: bytes of a GPU for the fullest
    rank, reserves included.
    """

    cluster: Cluster
    layout: dict[str, int]
    memory: list[Memory]
    traffic: list[Traffic]
    timing: Timing
    needed: float
    fits: bool

    @property
    def fullest(self) -> Memory:
        return max(self.memory, key=lambda memory: memory.peak)

    def as_json(self) -> dict[str, Any]:
        """Plain values, sizes in bytes; `fullest` is the pipeline rank whose peak is the highest."""
        memory = [asdict(each) for each in self.memory]
        return {
            "cluster": {"name": self.cluster.name, "num_gpus": self.cluster.num_gpus, **asdict(self.cluster.machine)},
            "layout": self.layout, "fits": self.fits, "needed": self.needed, "fullest": asdict(self.fullest),
            "memory": memory, "traffic": [asdict(each) for each in self.traffic], "timing": asdict(self.timing),
            "assumptions": assumptions(),
        }


def make_plan(loaded: Loaded, cluster: Cluster) -> Plan:
    """Raises UserError where the layout has another number of ranks than the cluster GPUs, and for engines and
    dispatches that are not planned."""
    require_planned(loaded)
    require_world(loaded, cluster)
    return plan_outline(Outline.of(loaded), cluster)


def plan_outline(outline: Outline, cluster: Cluster) -> Plan:
    """`make_plan` of what has been looked at: layouts of one recipe share an outline."""
    ranks = range(outline.sizes.pp)
    memory = [memory_on(outline, rank) for rank in ranks]
    traffic = max((traffic_on(outline, rank, cluster.machine) for rank in ranks),
                  key=lambda rows: sum(row.seconds for row in rows))
    needed = max(each.peak for each in memory) * FRAGMENTATION + RESERVED
    timing = time_of(outline, cluster, traffic, max(each.parameters for each in memory) // 4)
    return Plan(cluster, dict(vars(outline.sizes)), memory, traffic, timing, needed, needed <= cluster.machine.memory)


def require_planned(loaded: Loaded) -> None:
    """Raises UserError for what the formulas do not know."""
    layout = loaded.recipe.parallel
    if layout.engine != "fsdp":
        raise UserError(f"parallel.engine: {layout.engine} has no plan; allowed: fsdp")
    if layout.dispatch == "symmetric_memory":
        raise UserError("parallel.dispatch: symmetric_memory has no plan; allowed: auto, all_to_all")


def require_world(loaded: Loaded, cluster: Cluster) -> None:
    """Raises UserError, with the arithmetic, where the cluster is of another size than the layout."""
    sizes = mesh_sizes(loaded.recipe.parallel)
    if sizes.world != cluster.num_gpus:
        degrees = [(axis, getattr(sizes, axis)) for axis in ("dp_replicate", "dp_shard", "cp", "tp", "pp")]
        names, numbers = " * ".join(axis for axis, _ in degrees), " * ".join(str(degree) for _, degree in degrees)
        raise UserError(f"--on {cluster.name}: the recipe's layout is of {names} = {numbers} = {sizes.world} ranks; "
                        f"allowed: {sizes.world}x{cluster.machine.name}, a layout of {cluster.num_gpus} ranks, or "
                        "--search")


def assumptions() -> list[str]:
    """What the numbers take for granted, a line each."""
    return [*ASSUMPTIONS, f"a GPU must have room for {FRAGMENTATION:.2f} times the peak (the allocator's gaps) and "
            f"{RESERVED / 1e9:.0f} GB (CUDA, NCCL)"]
