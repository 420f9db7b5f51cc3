"""What becomes of a record that cannot be read: it stops the work, or is reported and passed over."""

from collections.abc import Callable
from typing import Literal

from framework.errors import UserError

OnMalformed = Literal["skip", "fail"]
SHOWN_RECORDS = 20


def refuse(message: str) -> None:
    """The report of a malformed record that stops the work."""
    raise UserError(message)


class Skipped:
    """The report of malformed records that are passed over: the first SHOWN_RECORDS are told, all are counted."""

    def __init__(self, tell: Callable[[str], None]):
        self._tell = tell
        self.count = 0

    def __call__(self, message: str) -> None:
        self.count += 1
        if self.count <= SHOWN_RECORDS:
            self._tell(f"skipped {message}")
        elif self.count == SHOWN_RECORDS + 1:
            self._tell("further malformed records are skipped without a line each")
