"""Where lines go: the terminal and the run folder's `log`, from rank 0; warnings of the other ranks to theirs."""

import logging
from pathlib import Path

from rich.console import Console

PACKAGES = ("framework", "parallel", "kernels")


class ConsoleHandler(logging.Handler):
    """Prints through rich, so that a line stands above a progress bar and not in it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def log_to(console: Console, folder: Path | None) -> None:
    """Send the project's lines to a console and to the folder's file `log`, there with time and module.

    folder: None on ranks other than 0, of which only warnings are worth a line.
    """
    handlers: list[logging.Handler] = [ConsoleHandler(console)]
    if folder is not None:
        file = logging.FileHandler(folder / "log")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(file)
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(logging.WARNING if folder is None else logging.INFO)
        logger.handlers = handlers
        logger.propagate = False
