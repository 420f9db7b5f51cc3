"""Figures that need no display."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def figure(columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row, drawn by the rasteriser that every machine has."""
    fig = Figure(figsize=(5.2 * columns, 3.4 * rows), dpi=140, layout="constrained")
    FigureCanvasAgg(fig)
    return fig, list(fig.subplots(rows, columns, squeeze=False).flat)
