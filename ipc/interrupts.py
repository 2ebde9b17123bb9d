"""Which job a domain is busy with, and which of its jobs it is asked to end although it reads no messages.

A domain writes the number of the plain job that keeps its main thread busy into a page that it shares with its parent,
and, whenever a signal wakes it, the number of the job whose fiber has its turn. The parent asks for the end of a job by
putting the number into a pipe, and then wakes the domain by a signal. Because a request names its job, one that arrives
late hits nobody else. The domain reads requests only when it was woken, so the page, and no system call, is what a job
costs.

Invariant: a number is in the pipe before the parent's message about the same job is in the link, so that whoever
handles the message finds the request, and can forget it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Mapping

from domains.ipc.claims import anonymous_page

_TOKEN_BYTES = 8
_PAGE_BYTES = 2 * _TOKEN_BYTES
_MOST_READ = 4096

NOBODY = 0
"""Stands in the page while no job keeps the domain busy; no job has this number."""


class _Interrupts:
    """What both sides share: one end of the pipe each, and the page."""

    def __init__(self, pipe: int, page: int) -> None:
        self._pipe = pipe
        self._page = page
        self._map = mmap.mmap(page, _PAGE_BYTES)
        self.busy_with = memoryview(self._map).cast("q")
        """At index 0, the plain job that keeps the domain's main thread busy, or `NOBODY`; written by the domain alone.

        At index 1, the job in whose fiber the last signal has found it, or `NOBODY`. Whoever sends one to learn that
        writes `NOBODY` first, and finds it again if the signal was not heard.
        """

    def close(self) -> None:
        """Release the descriptors and the page; idempotent."""
        if self._pipe >= 0:
            self.busy_with.release()
            self._map.close()
            os.close(self._pipe)
            os.close(self._page)
            self._pipe = self._page = -1


class SentInterrupts(_Interrupts):
    """The parent's side."""

    def __init__(self) -> None:
        self._reading, writing = os.pipe()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(os.close, self._reading)
            on_failure.callback(os.close, writing)
            os.set_blocking(self._reading, False)
            os.set_blocking(writing, False)
            page = anonymous_page("domains-interrupts", _PAGE_BYTES)
            on_failure.callback(os.close, page)
            super().__init__(writing, page)
            on_failure.pop_all()

    def descriptors(self) -> dict[str, int]:
        """What the domain must inherit, under the names that `ReceivedInterrupts` expects."""
        return {"interrupts": self._reading, "busy_with": self._page}

    def ask(self, job: int) -> bool:
        """Ask for the end of a job. False if so many were asked for that the domain has to read some first."""
        try:
            os.write(self._pipe, struct.pack("=q", job))
        except (BlockingIOError, BrokenPipeError):
            return False
        return True

    def close(self) -> None:
        if self._pipe >= 0:
            os.close(self._reading)
        super().close()


class ReceivedInterrupts(_Interrupts):
    """The domain's side."""

    def __init__(self, descriptors: Mapping[str, int]) -> None:
        super().__init__(descriptors["interrupts"], descriptors["busy_with"])

    def read(self) -> tuple[int, ...]:
        """The jobs whose end was asked for since the last time; may be called from a signal handler."""
        try:
            data = os.read(self._pipe, _MOST_READ * _TOKEN_BYTES)
        except BlockingIOError:
            return ()
        return struct.unpack(f"={len(data) // _TOKEN_BYTES}q", data)
