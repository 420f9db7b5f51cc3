"""Being told to stop: the signal becomes an exception, so that what is half done is cleared away."""

import contextlib
import signal
from collections.abc import Iterator


class Stopped(BaseException):
    """SIGINT or SIGTERM came. Not KeyboardInterrupt, which Typer turns into a silent exit."""

    def __init__(self, number: int):
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise Stopped, once: a second SIGINT kills, further SIGTERMs do nothing.

    Must be called from the main thread. Training and the launcher put handlers of their own over these.
    """
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped(number)
