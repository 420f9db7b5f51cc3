"""Draws docs/layouts.png: which part of the model, and of a step's tokens, each rank of a layout holds.

    python docs/draw_layouts.py

Parts follow from the degrees by the arithmetic of `parallel.Mesh`; its numbering of ranks is the picture's.
"""

from dataclasses import dataclass
from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from parallel import MeshSizes

LAYERS, EXPERTS, SEQUENCES = 4, 4, 4
DENSE, EXPERT, TOKEN = "#1f5fa8", "#c2571a", "#2e7d4f"
MEANINGS = {
    DENSE: "all but experts: layers downward, width across",
    EXPERT: "experts: layers downward, experts across",
    TOKEN: "tokens: sequences downward, positions across",
}
LAYOUTS = {
    "dp_replicate 2": MeshSizes(dp_replicate=2),
    "dp_shard 2": MeshSizes(dp_shard=2),
    "dp_shard 2, ep 2": MeshSizes(dp_shard=2, ep=2),
    "pp 2": MeshSizes(pp=2),
    "tp 2": MeshSizes(tp=2),
    "tp 2, ep 2": MeshSizes(tp=2, ep=2),
    "cp 2": MeshSizes(cp=2),
    "cp 2, ep 2": MeshSizes(cp=2, ep=2),
    "dp_replicate 2, dp_shard 2, ep 2": MeshSizes(dp_replicate=2, dp_shard=2, ep=2),
    "tp 2, pp 2": MeshSizes(tp=2, pp=2),
    "dp_shard 2, tp 2, ep 4": MeshSizes(dp_shard=2, tp=2, ep=4),
    "cp 2, tp 2, ep 2": MeshSizes(cp=2, tp=2, ep=2),
}


@dataclass(frozen=True)
class Place:
    """A rank's index along each axis and view."""

    pp: int
    batch: int
    cp: int
    tp: int
    fsdp: int
    expert_dp: int
    ep: int


def place(rank: int, sizes: MeshSizes) -> Place:
    """Where a rank stands: pp outermost, tp innermost; ep is innermost of the same numbers in another shape."""
    pp, in_stage = divmod(rank, sizes.dp_replicate * sizes.one_copy)
    replica, in_copy = divmod(in_stage, sizes.one_copy)
    fsdp, tp = divmod(in_copy, sizes.tp)
    shard, cp = divmod(fsdp, sizes.cp)
    return Place(pp, replica * sizes.dp_shard + shard, cp, tp, fsdp, *divmod(in_copy, sizes.ep))


def draw_rank(axes: Axes, rank: int, sizes: MeshSizes) -> None:
    """The model (layers downward; dense width, then experts) above the tokens (sequences downward)."""
    at = place(rank, sizes)
    held = LAYERS // sizes.pp
    for layer in range(at.pp * held, (at.pp + 1) * held):
        draw_part(axes, layer, 0.0, at.tp, sizes.tp, at.fsdp, sizes.dp_shard * sizes.cp, DENSE)
        draw_part(axes, layer, 0.5, at.ep, sizes.ep, at.expert_dp, sizes.expert_dp, EXPERT)
    for layer in range(LAYERS):
        draw_frame(axes, 0.0, layer, 0.5)
        for expert in range(EXPERTS):
            draw_frame(axes, 0.5 + 0.5 * expert / EXPERTS, layer, 0.5 / EXPERTS)
    draw_tokens(axes, at, sizes)
    axes.set(xlim=(-0.03, 1.03), ylim=(LAYERS + SEQUENCES + 0.7, -0.1))
    axes.set_title(f"rank {rank}", fontsize=8, pad=2)
    axes.axis("off")


def draw_part(
    axes: Axes, layer: int, left: float, part: int, num_parts: int, shard: int, num_shards: int, color: str
) -> None:
    """One of equal parts of half a layer, pale; the shard of it that is kept between uses, full."""
    width, height = 0.5 / num_parts, 1 / num_shards
    x = left + part * width
    axes.add_patch(Rectangle((x, layer), width, 1, color=color, alpha=0.25, lw=0))
    axes.add_patch(Rectangle((x, layer + shard * height), width, height, color=color, lw=0))


def draw_tokens(axes: Axes, at: Place, sizes: MeshSizes) -> None:
    """The rank's part of its sequences, full; pale what tp gathers for the blocks."""
    top, height = LAYERS + 0.6, SEQUENCES / sizes.batch
    width, fine = 1 / sizes.cp, 1 / (sizes.cp * sizes.tp)
    y = top + at.batch * height
    axes.add_patch(Rectangle((at.cp * width, y), width, height, color=TOKEN, alpha=0.25, lw=0))
    axes.add_patch(Rectangle(((at.cp * sizes.tp + at.tp) * fine, y), fine, height, color=TOKEN, lw=0))
    for sequence in range(SEQUENCES):
        draw_frame(axes, 0.0, top + sequence, 1.0)


def draw_frame(axes: Axes, x: float, y: float, width: float) -> None:
    """The outline of a part, held or not."""
    axes.add_patch(Rectangle((x, y), width, 1, fill=False, edgecolor="#777777", lw=0.5))


def main() -> None:
    """Draw four layouts of two ranks beside each other, then two of four."""
    figure = pyplot.figure(figsize=(9.6, 9.8))
    rows = figure.subfigures(4, 1, hspace=0.02)
    names = list(LAYOUTS)
    for row, group in zip(rows, (names[:4], names[4:8], names[8:10], names[10:]), strict=True):
        for part, name in zip(row.subfigures(1, len(group), wspace=0.02), group, strict=True):
            sizes = LAYOUTS[name]
            part.suptitle(name, fontsize=10, fontweight="bold", y=0.99)
            for rank, axes in enumerate(part.subplots(1, sizes.world)):
                draw_rank(axes, rank, sizes)
            part.subplots_adjust(left=0.05, right=0.95, top=0.84, bottom=0.1, wspace=0.15)
    handles = [Patch(color=color, label=label) for color, label in MEANINGS.items()]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=8, frameon=False)
    figure.savefig(Path(__file__).with_name("layouts.png"), dpi=110)


if __name__ == "__main__":
    main()
