"""Downstream tasks of EleutherAI's lm-evaluation-harness (the package lm-eval) on our models, whatever their layout.

`rows` makes rows of tokens of what a task asks, `scoring` takes them through a model on all ranks, `collective` lets
one rank ask and the others follow, `task_model` is the interface that lm-eval calls, `continuation` what generates.
`harness` loads tasks and runs them, `results` reads what comes out, `conditions` says what cannot be, `exported` takes
a Hugging Face folder by lm-eval's own model instead.
"""

from parallel.lazy import lazily

_HOMES = {
    "Scorer": "scoring",
    "TaskModel": "task_model",
    "TaskSet": "harness",
    "Team": "collective",
    "figures": "results",
    "load_tasks": "harness",
    "require_token_choice": "conditions",
    "table": "results",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
