"""What commands that take a sweep share: its source, and the options that add to it."""

from typing import Annotated

import typer

Source = Annotated[str, typer.Argument(
    metavar="SWEEP|RECIPE", help="a sweep's name or .yaml file, or a recipe's; --over and --seeds make a sweep of it")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields of all cells")]
Over = Annotated[list[str] | None, typer.Option(
    "--over", metavar="KEY=VALUES", help="an axis, as optim.lr=1e-3,2e-3 or optim.lr=log2(-10..-7); several multiply; "
    "'a=1,2 & b=3,4' goes through both at once")]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="N|LIST", help="how many seeds, or the seeds as 0,1,2")]
Link = Annotated[list[str] | None, typer.Option(
    "--link", metavar="EQUATION", help="as 'data.batch_size * data.seq_len = 65536'; gives the field that is open")]
Where = Annotated[list[str] | None, typer.Option(
    "--where", metavar="CONDITION", help="cells to keep, as 'params_active < 1e9 and model.d_model >= 64'")]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="WORD", help="of every cell's recipe")]
Name = Annotated[str | None, typer.Option("--name", help="of the sweep; default: the source's last part")]


def arguments(overrides, over, seeds, link, where, tags, name):
    """These options as `framework.sweep.Arguments`."""
    from framework.sweep import Arguments

    return Arguments(tuple(overrides or ()), tuple(over or ()), seeds, tuple(link or ()), tuple(where or ()),
                     tuple(tags or ()), name)
