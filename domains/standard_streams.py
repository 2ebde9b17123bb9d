"""Standard output and error of a domain: what several domains print at the same time comes out in whole lines.

A line is kept until it is complete and is then written at once, however long it is. Where the stream is a pipe, which
splits long writes, domains take turns by a lock on the pipe itself; the system lifts it when its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import stat
import sys
from typing import TextIO

_LONGEST_LINE_BYTES = 1 << 20


class _Turns(io.RawIOBase):
    """Writes to a descriptor, whole, while no other domain does."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._takes_turns = stat.S_ISFIFO(os.fstat(descriptor).st_mode)

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # io calls it with nothing but buffers
        size = len(view)
        locked = self._takes_turns and self._lock(fcntl.LOCK_EX)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        finally:
            if locked:
                self._lock(fcntl.LOCK_UN)
        return size

    def _lock(self, what: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, what)
        except OSError:  # not every system has locks on pipes
            self._takes_turns = False
            return False
        return True


def _whole_lines(stream: TextIO | None, errors: str) -> TextIO | None:
    try:
        descriptor = stream.fileno() if stream is not None else -1
    except (OSError, ValueError):
        return stream
    if descriptor < 0 or stream is None:
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    try:
        turns = _Turns(descriptor)
    except OSError:
        return None  # it is closed: as Python has it where it was from the start
    buffered = io.BufferedWriter(turns, _LONGEST_LINE_BYTES)
    return io.TextIOWrapper(buffered, encoding=stream.encoding, errors=errors, line_buffering=True)


def print_whole_lines() -> None:
    """Called once in each domain, before anything of the user's runs."""
    sys.stdout = _whole_lines(sys.stdout, "strict")
    sys.stderr = _whole_lines(sys.stderr, "backslashreplace")
