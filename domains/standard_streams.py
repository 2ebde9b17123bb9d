"""Standard output and error of a domain: what several domains print at the same time comes out in whole lines.

A line is kept until it is complete and is then written at once, however long it is. Where the stream is a pipe, which
splits long writes, domains take turns by a lock on the pipe itself; the system lifts it when its holder dies. One who
keeps it without writing, because it was stopped, is not waited for.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import stat
import sys
import threading
import time
from typing import TextIO

_LONGEST_LINE_BYTES = 1 << 20

_PATIENCE_SECONDS = 1.0
"""Whoever has the lock on a pipe, and does not write for so long though there is room, was stopped."""

_LONGEST_SLEEP_SECONDS = 0.001


class _File:
    """The lock on a pipe is the process's; its threads take turns by this one, as both streams may be one pipe."""

    def __init__(self) -> None:
        self.threads = threading.RLock()  # it can be taken again: a signal's handler may print
        self.is_locked = False

    def begin_as_child(self) -> None:
        """In a forked process, which has neither the lock on the pipe nor the thread that may have been writing."""
        self.is_locked = False
        if not self.threads._is_owned():  # type: ignore[attr-defined]  # by this thread, in whose midst it was forked
            self.threads._at_fork_reinit()  # type: ignore[attr-defined]


_files: dict[tuple[int, int], _File] = {}
"""By device and number."""


def _begin_as_child() -> None:
    for file in _files.values():
        file.begin_as_child()


os.register_at_fork(after_in_child=_begin_as_child)


class _Turns(io.RawIOBase):
    """Writes to a descriptor, whole, while no other domain does."""

    def __init__(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self._descriptor = descriptor
        self._takes_turns = stat.S_ISFIFO(status.st_mode)
        self._patience_seconds = _PATIENCE_SECONDS
        self.file = _files.setdefault((status.st_dev, status.st_ino), _File())

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # io calls it with nothing but buffers
        size = len(view)
        with self.file.threads:
            locked = self._takes_turns and not self.file.is_locked and self._lock()
            try:
                if locked:
                    self.file.is_locked = True
                while view:
                    try:
                        view = view[os.write(self._descriptor, view) :]
                    except BlockingIOError:  # somebody has made it so for all who share it
                        self._has_room(None)
            finally:
                if locked:
                    self.file.is_locked = False
                    fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
        return size

    def _lock(self) -> bool:
        """Take the lock on the pipe; False if this is to be written without."""
        sleep_seconds = _LONGEST_SLEEP_SECONDS / 16
        since = time.monotonic()
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                pass
            except OSError:  # not every system has locks on pipes
                self._takes_turns = False
                return False
            else:
                self._patience_seconds = _PATIENCE_SECONDS
                return True
            if not self._has_room(0):
                self._has_room(None)  # it is the reader that all wait for
                since = time.monotonic()
            elif time.monotonic() - since >= self._patience_seconds:
                self._patience_seconds = 0.0  # nor is it waited for with the next line
                return False
            time.sleep(sleep_seconds)
            sleep_seconds = min(2 * sleep_seconds, _LONGEST_SLEEP_SECONDS)

    def _has_room(self, milliseconds: int | None) -> bool:
        """Wait so long, or for ever, until something can be written, or nobody reads any more."""
        polling = select.poll()
        polling.register(self._descriptor, select.POLLOUT)
        return bool(polling.poll(milliseconds))


class _Lines(io.TextIOWrapper):
    """Keeps what begins a line, also behind a newline in the same text: Python's own writes both at once.

    A thread takes its turn before the buffer's lock: one that waited with that would keep a signal's handler, which
    interrupts the one whose turn it is, from printing there, and neither would ever go on.
    """

    def __init__(self, turns: _Turns, like: TextIO) -> None:
        self._file = turns.file
        buffered = io.BufferedWriter(turns, _LONGEST_LINE_BYTES)
        super().__init__(buffered, encoding=like.encoding, errors=like.errors, line_buffering=True)

    def _turn(self) -> contextlib.AbstractContextManager[object]:
        """None as the interpreter ends: that may have ended a daemon thread in the midst of its own."""
        return contextlib.nullcontext() if sys.is_finalizing() else self._file.threads

    def write(self, text: str, /) -> int:
        with self._turn():
            end = text.rfind("\n") + 1 if isinstance(text, str) else 0
            if 0 < end < len(text):
                super().write(text[:end])
                super().write(text[end:])
                return len(text)
            return super().write(text)

    def flush(self) -> None:
        with self._turn():
            super().flush()


def _whole_lines(stream: TextIO | None) -> TextIO | None:
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
    return _Lines(turns, stream)


def print_whole_lines() -> None:
    """Called once in each domain, before anything of the user's runs."""
    sys.stdout = _whole_lines(sys.stdout)
    sys.stderr = _whole_lines(sys.stderr)
