"""Tasks of the package lm-eval: found, loaded, run."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from framework.errors import UserError, nearest
from framework.packages import require_package
from framework.tasks.conditions import require_possible

OLDEST = "0.4.12"
SEED = 1234
"""Of the examples in a prompt, as lm-eval's own command has it."""


class TaskSet:
    """Tasks with their documents. loaded: what lm-eval's `TaskManager.load` gives."""

    def __init__(self, loaded: dict[str, Any]) -> None:
        self._loaded = loaded

    def run(self, model: Any, limit: int | None = None, bootstrap: int = 0) -> dict[str, Any]:
        """lm-eval's results for a `TaskModel` or a model of its own, the same each time.

        limit: documents of a task at most. bootstrap: resamplings from which errors of figures are estimated; 0: no
        errors, those of means neither.
        """
        from lm_eval.evaluator import evaluate

        for task in self._loaded["tasks"].values():
            task.set_fewshot_seed(seed=SEED)
        with quiet():
            return evaluate(model, self._loaded, limit=limit, log_samples=False, bootstrap_iters=bootstrap)


def load_tasks(names: Sequence[str], path: str | Path | None, num_fewshot: int | None, seq_len: int | None) -> TaskSet:
    """Find tasks, groups or tags by name, and load their documents, which may download them.

    path: a folder with further tasks, as lm-eval writes them (its files may name Python code, which then runs).
    num_fewshot: examples in a prompt, where a task does not forbid them; None: as each task says. seq_len: tokens of
    the model's sequences; None: not known. Raises UserError where lm-eval is missing or too old, for unknown names,
    tasks that cannot be loaded, and as `require_possible` does.
    """
    require_package("tasks", "lm-eval")
    if path is not None and not Path(path).is_dir():
        raise UserError(f"tasks: {path} is no folder; allowed: one with tasks as lm-eval writes them")
    with quiet():
        loaded = _load(names, path)
    for name, task in loaded["tasks"].items():
        if seq_len is not None:
            require_possible(name, task, seq_len)
        _set_fewshot(task, num_fewshot)
    return TaskSet(loaded)


def _load(names: Sequence[str], path: str | Path | None) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    if not hasattr(TaskManager, "load"):
        raise UserError(f"tasks: lm-eval is older than {OLDEST}; allowed: pip install -U 'upmix[hf]'")
    include = None if path is None else str(path)
    # Reading the list of the package's own tasks takes up to half a minute.
    manager = TaskManager(include_path=include, include_defaults=False) if include else None
    if manager is None or not set(names) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=include)
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(f"tasks: no task {name!r}{nearest(name, manager.all_tasks)}; allowed: those that "
                            "`lm-eval ls tasks` lists" + (f", and those in {path}" if path else ""))
    try:
        return manager.load(list(names))
    except UserError:
        raise
    except Exception as error:  # whatever a task's files, its data or the network raise
        raise UserError(f"tasks: {', '.join(names)} cannot be loaded ({type(error).__name__}: {error})") from error


def _set_fewshot(task: Any, given: int | None) -> None:
    """As lm-eval's own command: a task that says 0 keeps it."""
    own = task.get_config("num_fewshot")
    if given is not None and own != 0:
        task.set_config(key="num_fewshot", value=given)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it lm-eval and its data sets print nothing to standard output, log errors alone and draw no bars."""
    import tqdm

    levels = {name: logging.getLogger(name).level for name in ("lm_eval", "datasets")}
    drawn = tqdm.tqdm.__init__
    tqdm.tqdm.__init__ = functools.partialmethod(drawn, disable=True)
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        tqdm.tqdm.__init__ = drawn
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
