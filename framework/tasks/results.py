"""What lm-eval's results say: figures by task, and its table."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

NO_FILTER = "none"


def figures(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The numbers of each task and group, by metric.

    A metric has lm-eval's name, its error METRIC_stderr; of what a filter took from the answers METRIC,FILTER.
    """
    found = {}
    for task, values in {**results["results"], **results.get("groups", {})}.items():
        found[task] = {_metric(key): float(value) for key, value in values.items()
                       if "," in key and isinstance(value, Real)}
    return found


def flat(by_task: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The same as TASK/METRIC, for a row of metrics."""
    return {f"{task}/{metric}": value for task, values in by_task.items() for metric, value in values.items()}


def table(results: Mapping[str, Any]) -> str:
    """lm-eval's own table, and that of groups where there are some."""
    from lm_eval.utils import make_table

    tables = [make_table(results)]
    if results.get("groups"):
        tables.append(make_table(results, "groups"))
    return "\n".join(text.strip() for text in tables)


def _metric(key: str) -> str:
    metric, _, kind = key.partition(",")
    return metric if kind == NO_FILTER else key
