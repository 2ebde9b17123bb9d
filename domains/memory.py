"""Tells a domain's parent when the domain has come to hold more memory than it should."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable

_EVERY_SECONDS = 0.01


class MemoryWatch:
    """Looks at this process's resident memory, not too often; calls `exceeded(bytes)` once it is too much."""

    def __init__(self, most_bytes: int, exceeded: Callable[[int], object]) -> None:
        self._most_bytes = most_bytes
        self._exceeded = exceeded
        self._next_look = 0.0
        self._told = False

    def look(self) -> None:
        now = time.monotonic()
        if now >= self._next_look and not self._told:
            self._next_look = now + _EVERY_SECONDS
            size = resident_bytes()
            if size > self._most_bytes:
                self._told = True
                self._exceeded(size)


def resident_bytes() -> int:
    """The resident memory of this process; where the system does not tell, the most that it ever was.

    Or nothing where it cannot be known at this moment, because no more files can be opened.
    """
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return 0
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
