"""The deadlines of one event loop: a heap of our own under a single timer of the loop's.

Timers run in the order of their deadlines, and equal deadlines in the order in which they were set, on every loop and
in virtual time alike; loops themselves promise no order for equal deadlines. Setting costs O(log n); cancelling
O(1), and when more than half of the heap is cancelled it is swept, so that cancelling many is linear.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["Timer", "set_timer"]

_SWEEP_AT_LEAST = 64


class Timer:
    """A call that is due at `deadline`. Set -> Done, when it was called or cancelled."""

    __slots__ = ("_argument", "_callback", "_timers", "deadline")

    def __init__(self, timers: _Timers, deadline: float, callback: Callable[[Any], object], argument: Any) -> None:
        self._timers = timers
        self.deadline = deadline
        self._callback: Callable[[Any], object] | None = callback
        self._argument = argument

    def __repr__(self) -> str:
        return f"<timer due at {self.deadline:.3f} s of its loop's clock>"

    def cancel(self) -> None:
        """Do not call; nothing happens if it was called or cancelled before."""
        if self._callback is not None:
            self._callback = None
            self._argument = None
            self._timers.cancelled()

    def run(self) -> bool:
        """Make the call, unless it was cancelled."""
        callback, argument = self._callback, self._argument
        if callback is None:
            return False
        self._callback = None
        self._argument = None
        callback(argument)
        return True


class _Timers:
    """The heap of one loop."""

    __slots__ = ("__weakref__", "_cancelled", "_handle", "_heap", "_loop", "_sequence", "_wake_at")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._heap: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._cancelled = 0
        self._handle: asyncio.TimerHandle | None = None
        self._wake_at = float("inf")

    def set(self, deadline: float, callback: Callable[[Any], object], argument: Any) -> Timer:
        timer = Timer(self, deadline, callback, argument)
        heapq.heappush(self._heap, (deadline, next(self._sequence), timer))
        if deadline < self._wake_at:
            self._arm(deadline)
        return timer

    def cancelled(self) -> None:
        self._cancelled += 1
        if self._cancelled >= _SWEEP_AT_LEAST and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2]._callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0
        if self._cancelled == len(self._heap):
            # Nothing is due any more: a loop of virtual time must not believe that something is.
            self._heap.clear()
            self._cancelled = 0
            self._disarm()

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._wake_at = float("inf")

    def _arm(self, deadline: float) -> None:
        loop = self._loop()
        assert loop is not None
        if self._handle is not None:
            self._handle.cancel()
        self._handle = loop.call_at(deadline, self._run_due)
        self._wake_at = deadline

    def _run_due(self) -> None:
        loop = self._loop()
        assert loop is not None
        # Loops may be early by their clock's resolution; what was asked for is due all the same.
        now = max(loop.time(), self._wake_at)
        self._handle = None
        self._wake_at = float("inf")
        heap = self._heap
        try:
            while heap and (heap[0][0] <= now or heap[0][2]._callback is None):
                timer = heapq.heappop(heap)[2]
                if not timer.run():
                    self._cancelled -= 1
                heap = self._heap  # a callback may have had it swept
        finally:  # a signal handler may have raised in a callback
            heap = self._heap
            if heap and heap[0][0] < self._wake_at:
                self._arm(heap[0][0])


_timers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Timers] = weakref.WeakKeyDictionary()
_latest: tuple[weakref.ref[asyncio.AbstractEventLoop], _Timers] | None = None


def set_timer(deadline: float, callback: Callable[[Any], object], argument: Any) -> Timer:
    """Call `callback(argument)` when the running loop's clock reaches `deadline`, in seconds; it must not raise."""
    global _latest
    loop = asyncio.get_running_loop()
    latest = _latest
    if latest is not None and latest[0]() is loop:
        return latest[1].set(deadline, callback, argument)
    timers = _timers.get(loop)
    if timers is None:
        timers = _timers[loop] = _Timers(loop)
    _latest = (weakref.ref(loop), timers)
    return timers.set(deadline, callback, argument)
