"""Time for fibers: the running loop's clock, whether real or virtual.

Sleepers wake in the order of their deadlines, equal deadlines in the order of their sleeps.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from domains.scheduler.suspend import Suspension, suspend
from domains.scheduler.timers import set_timer
from domains.scheduler.yielding import yield_now

__all__ = ["Clock", "sleep", "sleep_until"]


async def sleep(seconds: float) -> None:
    """Wait so many seconds; 0 or less just lets the others run. Infinity waits until cancelled.

    Raises ValueError for NaN, and Cancelled as soon as the context is cancelled.
    """
    if seconds > 0:
        deadline = asyncio.get_running_loop().time() + seconds
        await suspend(_begin, "sleep", deadline)
    elif math.isnan(seconds):
        raise _not_a_number()
    else:
        await yield_now()


async def sleep_until(deadline: float) -> None:
    """Wait until the loop's clock shows `deadline`, in seconds; else as `sleep`."""
    if deadline > asyncio.get_running_loop().time():
        await suspend(_begin, "sleep", deadline)
    elif math.isnan(deadline):
        raise _not_a_number()
    else:
        await yield_now()


def _not_a_number() -> ValueError:
    return ValueError("how long to sleep must be a number of seconds, but is NaN")


def _begin(suspension: Suspension[None]) -> Callable[[Suspension[None]], object] | None:
    deadline: Any = suspension.target
    if deadline == math.inf:
        return None
    # The one wait that programs have by the hundred thousand: no closure, no bound method.
    suspension.target = set_timer(deadline, _wake, suspension)
    return _stop


def _stop(suspension: Suspension[None]) -> None:
    timer: Any = suspension.target
    timer.cancel()


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
