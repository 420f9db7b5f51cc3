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


def log_to(console: Console, folder: Path | None = None) -> None:
    """Send the project's lines to a console and, with a folder, to its file `log` with time and module."""
    handlers: list[logging.Handler] = [ConsoleHandler(console)]
    if folder is not None:
        file = logging.FileHandler(folder / "log")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(file)
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        logger.handlers = handlers
        logger.propagate = False
