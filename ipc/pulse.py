"""Asking another process for a sign of life that costs it nothing but a store to memory.

One side counts its questions in a shared page and sends a signal; the other answers, in its handler of the signal, by
copying the count. A process that is stopped, or stuck in C code that never comes back, does not answer.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Mapping

from domains.ipc.claims import anonymous_page

__all__ = ["AskedPulse", "Pulse"]

_PAGE_BYTES = 16
_ASKED, _ANSWERED = 0, 1


class AskedPulse:
    """The side that is asked."""

    def __init__(self, descriptors: Mapping[str, int]) -> None:
        self._page = descriptors["pulse"]
        self._map = mmap.mmap(self._page, _PAGE_BYTES)
        self._counts = memoryview(self._map).cast("q")

    def answer(self) -> None:
        """Give the sign of life that was asked for last; may be called from a signal handler."""
        self._counts[_ANSWERED] = self._counts[_ASKED]


class Pulse:
    """The side that asks."""

    def __init__(self) -> None:
        page = anonymous_page("domains-pulse", _PAGE_BYTES)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(os.close, page)
            self._map = mmap.mmap(page, _PAGE_BYTES)
            on_failure.pop_all()
        self._page = page
        self._counts = memoryview(self._map).cast("q")

    def descriptors(self) -> dict[str, int]:
        """What the other process must inherit, under the name that `AskedPulse` expects."""
        return {"pulse": self._page}

    def ask(self) -> None:
        """Count a question; the signal is the caller's to send."""
        self._counts[_ASKED] += 1

    @property
    def is_answered(self) -> bool:
        """Whether the last question was; True before the first."""
        return self._counts[_ASKED] == self._counts[_ANSWERED]

    def close(self) -> None:
        """Release the page; idempotent."""
        if self._page >= 0:
            self._counts.release()
            self._map.close()
            os.close(self._page)
            self._page = -1
