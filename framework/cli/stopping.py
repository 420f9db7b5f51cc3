"""Being told to stop: the signal becomes an exception, so that what is half done is cleared away."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from framework.training.signals import STOP_SIGNALS, Stopped

__all__ = ["Stopped", "telling", "unwinding"]


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Within the block SIGINT, SIGTERM and SIGUSR1 raise Stopped, once: a second SIGINT kills, the others do nothing.

    A signal that was held back until now (`parallel.launch` does so while it starts ranks) is let through. Must be
    called from the main thread. Training and the launcher put handlers of their own over these.
    """
    before = {number: signal.signal(number, _stop) for number in STOP_SIGNALS}
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def telling(when: str, speaks: bool = True) -> Iterator[None]:
    """A Stopped that the block raises ends the process with 128 + signal, in a line that tells when it came.

    speaks: whether this process is the one of several that writes the line.
    """
    try:
        yield
    except Stopped as stop:
        if speaks:
            print(f"upmix: {stop.tell(when)}", file=sys.stderr)
        sys.exit(128 + stop.signal)


def _stop(number: int, frame: object) -> None:
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_DFL if each == signal.SIGINT else signal.SIG_IGN)
    raise Stopped(number)
