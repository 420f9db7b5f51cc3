"""Being asked to stop: a signal is noted, and training leaves where all ranks can. Imports no torch.

Before ranks have joined, while native code waits for the others, nobody looks at a note; then the signal ends the
process at once. While rank 0 alone prepares data, it ends that.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
BEFORE_TRAINING = "before the first step"
SECONDS_APART = 1.0  # at most, between the arrivals of one signal at the processes that it was sent to


class Stopped(BaseException):
    """A stop signal came. Not KeyboardInterrupt, which Typer turns into a silent exit."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)

    def tell(self, when: str = "") -> str:
        """A line that says so."""
        return f"stopped by {self.signal.name} {when}".strip()


class StopRequest:
    """Notes the first stop signal within a `with` block; `number` is 0 until then. For the main thread."""

    def __init__(self) -> None:
        self.number = 0
        self._raises = False

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Within the block a signal raises Stopped; so does, at its begin, one that was noted before."""
        self._raises = True
        try:
            if self.number:
                raise Stopped(self.number)
            yield
        finally:
            self._raises = False

    @contextlib.contextmanager
    def ending_process(self, speaks: bool) -> Iterator[None]:
        """Within the block a signal ends the process with 128 + its number, even while native code runs.

        Python's own handlers wait for that code to return; a thread of ours does not. The block must hold nothing that
        has to be cleared away. speaks: say so in a line first.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        if self.number:
            _end(self.number, speaks)
        watch = threading.Thread(target=_end_on_signal, args=(reader, speaks), daemon=True)
        watch.start()
        before = signal.set_wakeup_fd(writer)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(writer)  # the thread has read all that came, and ends
            watch.join()
            os.close(reader)

    @contextlib.contextmanager
    def excusing(self) -> Iterator[None]:
        """Within the block a failure that a stop signal goes with is that stop: Stopped is raised instead.

        The signal reaches ranks and helper processes one after the other, and who is first breaks the others' work.
        """
        try:
            yield
        except RuntimeError:
            deadline = time.monotonic() + SECONDS_APART
            while not self.number and time.monotonic() < deadline:
                time.sleep(0.05)
            if not self.number:
                raise
            raise Stopped(self.number) from None

    def _note(self, number: int, frame: object) -> None:
        self.number = self.number or number
        if self._raises:
            self._raises = False
            raise Stopped(self.number)


def _end_on_signal(reader: int, speaks: bool) -> None:
    """In a thread: Python's part of every signal handler writes the number into the pipe as the signal comes."""
    while numbers := os.read(reader, 1):
        if numbers[0] in STOP_SIGNALS:
            _end(numbers[0], speaks)


def _end(number: int, speaks: bool) -> None:
    if speaks:
        os.write(2, f"upmix: {Stopped(number).tell(BEFORE_TRAINING)}\n".encode())
    os._exit(128 + number)
