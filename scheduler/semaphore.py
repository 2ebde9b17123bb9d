"""Permits: at most so many fibers at once, served in the order in which they came.

Invariant: fibers wait only while no permit is free; a freed permit goes to the first of them directly, never to a
newcomer. Belongs to the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from domains.scheduler.context import check
from domains.scheduler.suspend import suspend
from domains.scheduler.waiters import Waiter, WaitQueue

__all__ = ["Semaphore"]


class Semaphore:
    """`async with semaphore:` holds one of `n` permits.

    A `bounded` one has never more than n: a release too many raises ValueError. Raises TypeError or ValueError for an
    n that is no int of at least 0.
    """

    __slots__ = ("__weakref__", "_lent", "_limit", "_value", "_waiters", "label")

    def __init__(self, n: int, *, bounded: bool = True, label: str | None = None) -> None:
        if type(n) is not int:
            raise TypeError(f"n must be an int, not {type(n).__name__} {n!r}")
        if n < 0:
            raise ValueError(f"n must be at least 0, but is {n}")
        self.label = label
        self._value = n
        self._limit = n if bounded else None
        self._lent = 0  # of the permits that are taken, those that somebody keeps account of, to have them back
        self._waiters: WaitQueue[None] = WaitQueue()

    def __repr__(self) -> str:
        name = "" if self.label is None else f" {self.label!r}"
        return f"<semaphore{name}, {self._value} free, {len(self._waiters)} waiting>"

    @property
    def value(self) -> int:
        """How many permits are free."""
        return self._value

    async def acquire(self) -> None:
        """Take a permit; waits while none is free, behind those who wait already. A cancelled acquire takes none."""
        check()
        if not self._try_acquire():
            await suspend(self._wait, "Semaphore.acquire", self)

    def release(self) -> None:
        """Give a permit back; any fiber may. Raises ValueError above the limit of a bounded semaphore."""
        if self._value == self._limit:
            raise ValueError(f"{self!r} has all its permits already: this was released too often")
        if self._lent and self._limit is not None and self._lent == self._limit - self._value:
            self._lent -= 1  # no other is out: it was released in its holder's stead
        if self._waiters and self._waiters.wake_first(None):
            return
        self._value += 1

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()

    def _try_acquire(self) -> bool:
        if self._value:
            self._value -= 1
            return True
        return False

    def _wait(self, waiter: Waiter[None]) -> Callable[[Any], object]:
        self._waiters.join(waiter)
        return self._waiters.withdraw

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} travels only between domains: as a job's argument or result, or inside another one")
