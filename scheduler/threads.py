"""Blocking calls off the loop, each in a thread of its own.

The threads are daemons: a program that is told to end at once does not wait for a call that blocks. At most
`THREADS_AT_ONCE` run for one loop, calls that were abandoned included; further ones wait their turn, first come, first
served. How many calls a loop waits for is counted, for loops whose time stands still meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
import weakref
from asyncio import CancelledError
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

from domains.scheduler.context import check
from domains.scheduler.promise import Promise, Raised, Resolver
from domains.scheduler.semaphore import Semaphore
from domains.scheduler.suspend import suspend

__all__ = ["THREADS_AT_ONCE", "CallThread", "calls_under_way", "run_in_thread"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

THREADS_AT_ONCE = 64


class _Calls:
    """Those of one loop."""

    __slots__ = ("permits", "under_way")

    def __init__(self) -> None:
        self.permits = Semaphore(THREADS_AT_ONCE, label="threads at once")
        self.under_way = 0


_calls: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Calls] = weakref.WeakKeyDictionary()


def calls_under_way(loop: asyncio.AbstractEventLoop) -> int:
    """How many calls in threads this loop waits for; a call that was abandoned counts no more."""
    return _calls[loop].under_way if loop in _calls else 0


async def run_in_thread(f: Callable[[*Ts], T], *args: *Ts, cancellable: bool = False) -> T:
    """Call `f(*args)` in a thread, with a copy of this fiber's context variables, and return its result.

    Raises what f raises. Cancelling waits for the call to end, and its result is returned; with `cancellable` the call
    is abandoned, and its result dropped. A call that still waits for a thread is just cancelled.
    """
    check()
    loop = asyncio.get_running_loop()
    calls = _calls.setdefault(loop, _Calls())
    calls.under_way += 1
    try:
        promise: Promise[T]
        promise, resolver = Promise.create(getattr(f, "__name__", None))
        call = functools.partial(contextvars.copy_context().run, f, *args)
        thread = CallThread(call, loop, calls.permits, resolver)
        await calls.permits.acquire()
        try:
            thread.start()
        except BaseException:  # RuntimeError: the system gives no more threads; or a signal's, though there is one
            if thread.claim() is not None:
                calls.permits.release()
            raise
        return await promise if cancellable else await _outcome(promise, f)
    finally:
        calls.under_way -= 1


async def _outcome(promise: Promise[T], f: object) -> T:
    """Wait for the thread, whatever happens; a `task.cancel()` that came meanwhile is raised afterwards."""
    cancelled: CancelledError | None = None
    while (result := promise.peek()) is None:
        try:
            await suspend(promise.when_resolved, "run_in_thread", f, protected=True)
        except CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    if isinstance(result, Raised):
        raise result.error
    return result.value


class CallThread(threading.Thread):
    """Makes one call, and hands its outcome over to the loop."""

    def __init__(
        self,
        call: Callable[[], Any],
        loop: asyncio.AbstractEventLoop,
        permits: Semaphore,
        resolver: Resolver[Any],
    ) -> None:
        super().__init__(name=f"run_in_thread {resolver.promise.label}", daemon=True)
        self.is_over = False
        """Whether the call has returned: then nothing comes from here but the outcome."""
        self._call = [call]
        self._loop = loop
        self._permits = permits
        self._resolver = resolver

    def claim(self) -> Callable[[], Any] | None:
        """The call, for one who makes it or gives it up: from then on it is theirs to give the permit back."""
        try:
            return self._call.pop()
        except IndexError:
            return None

    def run(self) -> None:
        call = self.claim()
        if call is None:
            return  # given up as it was started
        try:
            value = call()
        except BaseException as error:
            settle = functools.partial(self._resolver.fail, error)
        else:
            settle = functools.partial(self._resolver.resolve, value)
        self.is_over = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._hand_over, settle)

    def _hand_over(self, settle: Callable[[], None]) -> None:
        self._permits.release()
        settle()
