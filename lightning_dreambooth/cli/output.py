"""Standard output and error whose reader may go: a closed terminal, or a pipe to a program that has ended."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class LastingStream:
    """A text stream that is written to nowhere once its reader has gone, so that no print breaks a training step.

    Args:
        stream: A text stream with a file behind it.
        lost: Called when writing to it fails.
    """

    def __init__(self, stream: Any, lost: Callable[[], None]) -> None:
        self.stream, self.lost = stream, lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Writes; returns the number of characters, as if all had been read."""
        self._attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered."""
        self._attempt(self.stream.flush)

    def _attempt(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())  # also for what the stream has buffered
            self.lost()


@contextmanager
def lasting_output(lost: Callable[[], None]) -> Iterator[None]:
    """Makes standard output and error last through the block; calls `lost` when the reader of one has gone."""
    streams: list[Any] = [sys.stdout, sys.stderr]
    sys.stdout, sys.stderr = lasting = [LastingStream(stream, lost) for stream in streams]
    try:
        yield
    finally:
        for stream in lasting:
            stream.flush()
        sys.stdout, sys.stderr = streams
