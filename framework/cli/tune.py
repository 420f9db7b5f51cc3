"""`upmix tune rlrs RECIPE`: search for the learning rates of a small model that a larger one then extends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from framework.cli.names import folder_name

app = typer.Typer(help="Search for the best values of a recipe's fields.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Search for the best values of a recipe's fields."""


@app.command("rlrs")
def rlrs(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")] = None,
    name: Annotated[str | None, typer.Option(help="of the search; default: the recipe's last part")] = None,
    runs_dir: Annotated[Path, typer.Option(help="where its folder stands")] = Path("runs"),
    at_once: Annotated[int | None, typer.Option(min=1, help="trials that run at a time; default: as many as there "
                                                "are cores for, at most the 4 variants of a field")] = None,
    passes: Annotated[int, typer.Option(min=1, help="over all fields, at most")] = 20,
    seed: Annotated[int, typer.Option(help="of the order of fields")] = 0,
    search: Annotated[str | None, typer.Option(metavar="FIELD,...", help="dotted keys, roles or families for their "
                      "start and end, or `default`, which is lr, final_lr_fraction and every part's start and "
                      "end")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Tune relative learning rates by coordinate descent (arXiv 2507.03526); given again, it goes on where it was."""
    from framework.trials.rate_display import watching
    from framework.trials.rate_fields import find_fields
    from framework.trials.rate_search import Search
    from framework.trials.rate_tuning import room_for, tune

    path = runs_dir / folder_name(name, recipe, "search")
    searched = find_fields(recipe, overrides or [], search)
    at_once = at_once or room_for(searched)
    with watching() as watch:
        tuning = tune(searched, Search(len(searched.fields), passes, seed), path, at_once, watch)
    found = tuning.summary()
    print(json.dumps(found)) if as_json else _print(found)


def _print(found: dict[str, Any]) -> None:
    for key, value in found["values"].items():
        print(f"{key:<36} {value:>10.6g}")
    losses = ["none" if found[key] is None else f"{found[key]:.4f}" for key in ("loss", "baseline_loss")]
    ending = "the last one changed nothing" if found["converged"] else "--passes allows no more"
    print(f"training loss {losses[0]}, at the start {losses[1]}; trials {found['trials']}, passes {found['passes']}, "
          f"{ending}\nfragment: {found['fragment']}\npicture: {found['picture']}")
