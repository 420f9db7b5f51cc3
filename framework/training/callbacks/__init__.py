"""What watches training: sinks of metrics, progress, traces, the watchdog. One concept a file."""

from framework.training.callbacks.base import Callback
from framework.training.callbacks.jsonl import JsonLines
from framework.training.callbacks.profiler import MemorySnapshot, Profiler
from framework.training.callbacks.progress import ProgressBar, ProgressLines
from framework.training.callbacks.scalars import TensorBoard, WeightsAndBiases
from framework.training.callbacks.watchdog import Watchdog

__all__ = [
    "Callback", "JsonLines", "MemorySnapshot", "Profiler", "ProgressBar", "ProgressLines", "TensorBoard", "Watchdog",
    "WeightsAndBiases",
]
