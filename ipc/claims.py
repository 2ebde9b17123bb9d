"""The right to start a job, handed over so that exactly one side has it.

A parent offers numbered jobs to a domain ahead of time; the domain claims them one by one as it starts them; the
parent may take back those not yet claimed, even while the domain is deep in a computation and reads nothing.
The offers lie in a pipe as 8-byte tokens: the kernel gives each to one reader only, in order, whole. A shared
page holds the number of the last job that the domain started, written by it alone, so that after its death the
parent knows which of the claimed ones never began.

Invariant: a number that was offered is claimed, taken back or still in the pipe; never two of these.
Cost: an offer or claim of any number of jobs is one system call; marking a start is a store to memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

_TOKEN_BYTES = 8
_PIPE_BYTES = 64 * 1024
"""What a pipe usually holds. An offer that finds no room is not made."""


class _Claims:
    """What both sides share: the pipe's two ends and the page."""

    def __init__(self, reading: int, writing: int, page: int) -> None:
        self._reading = reading
        self._writing = writing
        self._page = page
        self._map = mmap.mmap(page, _TOKEN_BYTES)
        self._started = memoryview(self._map).cast("q")

    def close(self) -> None:
        """Release the descriptors and the page; idempotent."""
        if self._reading >= 0:
            self._started.release()
            self._map.close()
            for descriptor in (self._reading, self._writing, self._page):
                if descriptor >= 0:
                    os.close(descriptor)
            self._reading = self._writing = self._page = -1


class OfferedClaims(_Claims):
    """The parent's side."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(os.close, reading)
            on_failure.callback(os.close, writing)
            os.set_blocking(reading, False)
            os.set_blocking(writing, False)
            page = anonymous_page("domains-claims", _TOKEN_BYTES)
            on_failure.callback(os.close, page)
            super().__init__(reading, writing, page)
            on_failure.pop_all()
        self._started[0] = -1

    def descriptors(self) -> dict[str, int]:
        """What the domain must inherit, under the names that `ReceivedClaims` expects."""
        return {"claims": self._reading, "started": self._page}

    def offer(self, jobs: Sequence[int]) -> int:
        """Let the domain start these, in this order. Returns how many: there may be no room for all."""
        data = struct.pack(f"={len(jobs)}q", *jobs)
        try:
            written = os.write(self._writing, data)
        except BlockingIOError:
            return 0
        assert written % _TOKEN_BYTES == 0
        return written // _TOKEN_BYTES

    def when_room(self, callback: Callable[[], object]) -> Callable[[], object]:
        """Call this once, when more can be offered; returns what withdraws it. At most one may wait at a time."""
        loop = asyncio.get_running_loop()
        withdraw = partial(loop.remove_writer, self._writing)

        def tell() -> None:
            withdraw()
            callback()

        loop.add_writer(self._writing, tell)
        return withdraw

    def take_back(self) -> list[int]:
        """Every offer that nobody has claimed, in order; the domain will not start these."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while len(data) % _PIPE_BYTES == 0:  # a pipe may be larger than usual
                data += os.read(self._reading, _PIPE_BYTES)
        return list(struct.unpack(f"={len(data) // _TOKEN_BYTES}q", data))

    def last_started(self) -> int:
        """The job that the domain started last, or -1. Exact once the domain has ended."""
        return self._started[0]


class ReceivedClaims(_Claims):
    """The domain's side."""

    def __init__(self, descriptors: Mapping[str, int]) -> None:
        super().__init__(descriptors["claims"], -1, descriptors["started"])

    def claim(self) -> int | None:
        """The job whose turn it is, in the order offered, now this domain's to start; None when none is offered."""
        try:
            token = os.read(self._reading, _TOKEN_BYTES)
        except BlockingIOError:
            return None
        return int.from_bytes(token, sys.byteorder) if token else None

    def mark_started(self, job: int) -> None:
        """Say that this job begins; every job offered before it has begun or was dropped."""
        self._started[0] = job


def anonymous_page(label: str, size_bytes: int) -> int:
    """A page of shared memory without a name in any file system, so that nothing is left whatever dies."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(label, os.MFD_CLOEXEC)
    else:
        import tempfile  # slow to import, and not needed on Linux

        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(os.close, descriptor)
        os.ftruncate(descriptor, size_bytes)
        on_failure.pop_all()
    return descriptor
