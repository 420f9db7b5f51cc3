"""`upmix eval RUN`: loss of a run over its validation set, and downstream tasks."""

import json
from pathlib import Path
from typing import Annotated

import typer

from framework.cli.progress import growing_bar
from framework.errors import UserError

BOOTSTRAP = 100_000  # as lm-eval's own command


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN|DIR", help="run folder; with --tasks also one of Hugging Face")],
    step: Annotated[int | None, typer.Option(help="checkpoint to take; default: the newest good one")] = None,
    tasks: Annotated[str | None, typer.Option(help="of lm-eval, joined by commas (extra hf)")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="documents of each task; default: all")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="examples in a prompt; default: the task's")] = None,
    task_path: Annotated[Path | None, typer.Option(help="folder with further tasks, as lm-eval writes them")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="rows of a task's forward; default: the run's")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Print validation loss in nats a token and bits a byte, and figures of tasks, in one process."""
    from framework.packages import require_package
    from framework.tasks.exported import is_exported

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if not names and (tasks is not None or (limit, num_fewshot, task_path, batch_size) != (None,) * 4):
        raise UserError("--tasks names no task, and --limit, --num-fewshot, --task-path and --batch-size are for them; "
                        "allowed: one task or several joined by commas")
    if names:
        require_package("--tasks", "lm-eval")
    if is_exported(run):
        report, table = _exported(run, step, names, limit, num_fewshot, task_path, batch_size)
    else:
        report, table = _live(run, step, names, limit, num_fewshot, task_path, batch_size)
    if as_json:
        print(json.dumps(report))
        return
    if report.get("val_loss") is not None:
        bits = report["val_bits_per_byte"]
        print(f"step {report['step']}: validation loss {report['val_loss']:.4f} nats a token"
              + (f", {bits:.4f} bits per byte" if bits is not None else ""))
    if table:
        print(table)


def _live(
    run: Path, step: int | None, names: list[str], limit: int | None, num_fewshot: int | None, task_path: Path | None,
    batch_size: int | None,
) -> tuple[dict, str]:
    """The report, and lm-eval's table if there are tasks."""
    import torch

    from framework.tasks import figures, load_tasks, table
    from framework.training import load_run
    from framework.training.run_evaluation import has_validation, measure_loss, run_tasks, task_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = load_run(run, step, device)
    with growing_bar("evaluated") as watch:
        if names:
            model = task_model(found, run, device, batch_size, watch)
            loaded = load_tasks(names, task_path, num_fewshot, model.seq_len)
        report = {"step": found.step, "val_loss": None, "val_bits_per_byte": None, "tokens": None}
        if not names or has_validation(found):
            report |= measure_loss(found, run, device, watch)
        if not names:
            return report, ""
        results = run_tasks(model, loaded, limit, BOOTSTRAP)
    return {**report, "tasks": figures(results)}, table(results)


def _exported(
    folder: Path, step: int | None, names: list[str], limit: int | None, num_fewshot: int | None,
    task_path: Path | None, batch_size: int | None,
) -> tuple[dict, str]:
    """The same of a Hugging Face folder, by lm-eval's own model."""
    from framework.tasks import figures, load_tasks, table
    from framework.tasks.exported import run_exported

    if not names:
        raise UserError(f"{folder}: a Hugging Face folder; allowed: a run, or --tasks, which lm-eval's own model takes")
    if step is not None:
        raise UserError(f"--step {step}: {folder} is a Hugging Face folder, of one step; allowed: no --step")
    results = run_exported(folder, load_tasks(names, task_path, num_fewshot, None), batch_size, limit, BOOTSTRAP)
    return {"tasks": figures(results)}, table(results)
