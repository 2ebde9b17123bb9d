"""How far a pool's jobs are: counted as they end, told every so often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple


class PoolProgress(NamedTuple):
    """Since the watch began: how many jobs, or items of a `map`, were submitted, have ended, and have failed."""

    submitted: int
    ended: int
    failed: int


class ProgressCount:
    """A pool's counts since it was opened."""

    __slots__ = ("ended", "failed", "submitted")

    def __init__(self) -> None:
        self.submitted = 0
        self.ended = 0
        self.failed = 0

    def since(self, start: PoolProgress) -> PoolProgress:
        return PoolProgress(self.submitted - start.submitted, self.ended - start.ended, self.failed - start.failed)


class ProgressWatch:
    """A block in which `callback(progress)` is called each `interval` seconds if something has changed, and at the end.

    What the callback raises goes to the loop's exception handler, or, at the end, out of the block. To enter it
    within itself raises RuntimeError.
    """

    def __init__(self, count: ProgressCount, callback: Callable[[PoolProgress], object], interval: float) -> None:
        self._count = count
        self._callback = callback
        self._interval = interval
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> ProgressWatch:
        if self._timer is not None:
            raise RuntimeError("this watch is under way already: for a block within a block, call watch again")
        self._loop = asyncio.get_running_loop()
        self._start = self._count.since(PoolProgress(0, 0, 0))
        self._told: PoolProgress | None = None
        self._timer = self._loop.call_later(self._interval, self._tick)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._timer is not None
        self._timer.cancel()
        self._timer = None
        self._tell()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._tick)
        self._tell()

    def _tell(self) -> None:
        progress = self._count.since(self._start)
        if progress != self._told:
            self._told = progress
            self._callback(progress)
