"""Time for fibers: the running loop's clock, whether real or virtual.

Sleepers wake in the order of their deadlines, equal deadlines in the order of their sleeps.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from domains.scheduler.suspend import Suspension, suspend
from domains.scheduler.timers import set_timer
from domains.scheduler.yielding import yield_now

__all__ = ["Clock", "sleep", "sleep_until"]


async def sleep(seconds: float) -> None:
    """Wait so many seconds; 0 or less just lets the others run. Infinity waits until cancelled.

    Raises ValueError for NaN, and Cancelled as soon as the context is cancelled.
    """
    await sleep_until(asyncio.get_running_loop().time() + seconds)


async def sleep_until(deadline: float) -> None:
    """Wait until the loop's clock shows `deadline`, in seconds; else as `sleep`."""
    if math.isnan(deadline):
        raise ValueError("how long to sleep must be a number of seconds, but is NaN")
    if deadline <= asyncio.get_running_loop().time():
        await yield_now()
        return

    def begin(suspension: Suspension[None]) -> Callable[[Suspension[None]], object] | None:
        if deadline == math.inf:
            return None
        timer = set_timer(deadline, _wake, suspension)
        return lambda _: timer.cancel()

    await suspend(begin, "sleep", deadline)


def _wake(suspension: Suspension[None]) -> None:
    suspension.resume(None)


class Clock:
    """The authority to tell the time and to wait for it."""

    def now(self) -> float:
        """Seconds on the running loop's clock, which only goes forward; its zero means nothing."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Wait so many seconds; 0 or less just lets the others run. Raises ValueError for NaN."""
        await sleep(seconds)

    async def sleep_until(self, deadline: float) -> None:
        """Wait until `now()` shows `deadline`."""
        await sleep_until(deadline)
