"""The command `upmix`: one module per verb, errors of the user in one line with exit code 2."""

import errno
import importlib
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

VERBS = ("recipes", "show", "train", "eval", "generate", "report", "bench", "check", "coordcheck", "lrtransfer", "tune",
         "upcycle", "laws", "sweep", "checkpoint", "tokenizer", "data", "submit",
         "status", "cancel", "logs", "convert", "plan")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Typer carries its own click in new releases and uses the public one in old ones; this class is right in both.
ClickException = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def build(verbs: Sequence[str] = VERBS) -> typer.Typer:
    """The application with every verb, or with few, which is sooner there. A verb's module has `command`, a function,
    or `app`, a group of commands."""
    app = typer.Typer(
        help="Train mixture-of-experts and state-space language models.",
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    )
    app.callback(invoke_without_command=True)(_root)
    for verb in verbs:
        module = importlib.import_module(f"framework.cli.{verb}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb)
        else:
            app.command(verb)(module.command)
    return app


def main() -> None:
    """Run the command line; exit 0 when good, 2 with one line on standard error for a user's mistake.

    A mistake is a UserError, a command line that cannot be read, a launcher's wrong variables, or a file or folder
    that the system refuses. SIGINT, SIGTERM and SIGUSR1 unwind, so that nothing stays half-written, and exit with
    128 + signal.
    """
    from framework.cli.stopping import Stopped, unwinding
    from framework.errors import UserError
    from parallel.place import WrongPlace

    try:
        with unwinding():
            asked = [word for word in sys.argv[1:2] if word in VERBS]
            sys.exit(build(asked or VERBS)(prog_name="upmix", standalone_mode=False))
    except (UserError, WrongPlace) as error:
        sys.exit(_fail(str(error)))
    except ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # of a group of commands, without any
            print(error.format_message(), file=sys.stderr)
            sys.exit(2)
        sys.exit(_fail(error.format_message().replace("Value error, ", "")))
    except Stopped as error:
        sys.exit(_fail(f"stopped by {error.signal.name}", 128 + error.signal))
    except typer.Abort:
        sys.exit(130)
    except OSError as error:
        if error.errno in NO_ROOM:
            sys.exit(_fail(f"{error.filename or 'writing'}: {error.strerror}; allowed: more room, or another place"))
        if (name := error.filename2 or error.filename) is None:
            raise
        sys.exit(_fail(f"{name}: {error.strerror}; allowed: a path that can be used so"))


def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    if show_version:
        from importlib.metadata import version

        print(version("upmix"))
    elif context.invoked_subcommand is None:
        print(context.get_help())


def _fail(message: str, code: int = 2) -> int:
    plain = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(message.split()))
    print(f"upmix: {plain}", file=sys.stderr)
    return code
