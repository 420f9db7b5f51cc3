"""The command `upmix`: one module per verb, errors of the user in one line with exit code 2."""

import importlib
import sys

import click
import typer

VERBS = ("recipes", "show")


def build() -> typer.Typer:
    """The application with every verb. A verb's module has `command`, a function, or `app`, a group of commands."""
    app = typer.Typer(
        help="Train mixture-of-experts and state-space language models.",
        add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, rich_markup_mode=None,
    )
    for verb in VERBS:
        module = importlib.import_module(f"framework.cli.{verb}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb)
        else:
            app.command(verb)(module.command)
    return app


def main() -> None:
    """Run the command line; exit 0 when good, 2 with one line on standard error for a user's mistake."""
    from framework.errors import UserError

    try:
        sys.exit(build()(standalone_mode=False))
    except UserError as error:
        sys.exit(_fail(str(error)))
    except click.ClickException as error:
        sys.exit(_fail(error.format_message()))
    except click.exceptions.Abort:
        sys.exit(130)


def _fail(message: str) -> int:
    print("upmix: " + " ".join(message.split()), file=sys.stderr)
    return 2
