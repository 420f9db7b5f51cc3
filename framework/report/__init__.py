"""Reads run folders: tables for notebooks, curves as pictures. Never imports torch."""

from framework.report.curves import AXES, draw_losses
from framework.report.experts import draw_expert_load
from framework.report.runs import Run, load_runs
from framework.report.table import write_csv

__all__ = ["AXES", "Run", "draw_expert_load", "draw_losses", "load_runs", "write_csv"]
