"""Reads run folders: tables for notebooks, curves as pictures. Never imports torch."""

from framework.report.curves import AXES, LOSSES, draw_curves
from framework.report.experts import BALANCE, draw_expert_load
from framework.report.runs import Run, load_runs
from framework.report.table import write_csv

__all__ = ["AXES", "BALANCE", "LOSSES", "Run", "draw_curves", "draw_expert_load", "load_runs", "write_csv"]
