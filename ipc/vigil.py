"""A vigil: a loop that does not sleep while an answer is awaited that is likely to come very soon.

To put a process to sleep and to wake it again may take longer than a short job does. Then its receiver turns its loop
instead, for a bounded time, and lets others have its core between the turns. Where cores are busy that gains nothing,
or takes one from who is to answer. So both ways are measured, and the one that has been faster lately is taken.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import time
from collections.abc import Callable

__all__ = ["SOON_SECONDS", "Vigil"]

SOON_SECONDS = 0.0002
"""A vigil's length at most, and the limit of what is worth one. Half of it was measured for a job that does nothing."""

_MEMORY = 32
"""A median moves by its part of so many with each answer, and is not known before so many."""

_ASIDE = 64
"""One answer of so many is awaited the other way, to know how that would be."""

_GAIN = 0.9
"""A vigil takes a core, and so it has to be faster by a tenth."""

_PATIENCE = 2
"""It ends after so many times what it takes in the median."""

_give_way: Callable[[], None] = getattr(os, "sched_yield", lambda: None)


class _Median:
    """Of the latest: it goes up or down by a step, whether one is by far longer or a little."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.count = 0

    def add(self, seconds: float) -> None:
        if self.count < _MEMORY:
            self.count += 1
        if not self.seconds:
            self.seconds = seconds
        elif seconds > self.seconds:
            self.seconds *= 1 + 1 / _MEMORY
        else:
            self.seconds *= 1 - 1 / _MEMORY


class Vigil:
    """Of one link, for one answer at a time."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.awaited_since: float | None = None
        """The time at which the answer that is awaited now began to be."""
        self.is_turning = False
        """Whether the loop has another turn of this to come."""
        self._clock = clock
        self._context = contextvars.Context()  # the turns keep nobody's variables alive
        self._is_kept = False  # whether this answer is awaited awake
        self._limit_seconds = SOON_SECONDS
        self._count = 0
        self._asleep = _Median()
        self._awake = _Median()

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """An answer is awaited from now on."""
        self.awaited_since = self._clock()
        self._is_kept = False
        asleep = self._asleep
        if asleep.count == _MEMORY and asleep.seconds <= SOON_SECONDS:
            self._count += 1
            is_faster = self._awake.seconds < _GAIN * asleep.seconds
            self._is_kept = is_faster is (self._count % _ASIDE != 0)
            if self._is_kept:
                self._limit_seconds = min(SOON_SECONDS, _PATIENCE * self._awake.seconds or SOON_SECONDS)
                if not self.is_turning:
                    self._turn_soon(loop)

    def end(self) -> None:
        """It has come."""
        assert self.awaited_since is not None
        seconds = self._clock() - self.awaited_since
        self.awaited_since = None
        (self._awake if self._is_kept else self._asleep).add(seconds)

    def _turn_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        self.is_turning = True
        loop.call_soon(self._turn, loop, context=self._context)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self.is_turning = False
        since = self.awaited_since
        if self._is_kept and since is not None and self._clock() - since <= self._limit_seconds:
            _give_way()
            self._turn_soon(loop)
