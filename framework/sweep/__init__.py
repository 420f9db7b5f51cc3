"""Sweeps: one recipe and many changes of it, from a file or arguments to recipes that can be trained.

Imports no torch.
"""

from framework.sweep.arguments import Arguments
from framework.sweep.files import is_sweep, sweep_names
from framework.sweep.load import Cell, Sweep, load_sweep

__all__ = ["Arguments", "Cell", "Sweep", "is_sweep", "load_sweep", "sweep_names"]
