"""Waiting until somebody says that something has changed.

A broadcast wakes those who wait at that moment, in their order, and leaves no trace: whoever needs not to miss one
registers before reading the state, which `wait` (under the mutex) and `loop_no_mutex` do. `broadcast` may be called
from any thread and from a signal handler; all else belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar, overload

from domains.scheduler.awaitables import call
from domains.scheduler.cancel import to_the_end
from domains.scheduler.context import check
from domains.scheduler.mutex import Mutex
from domains.scheduler.promise import Promise, Resolver
from domains.scheduler.suspend import Suspension, suspend
from domains.scheduler.waiters import Waiter, WaitQueue

__all__ = ["Condition"]

T = TypeVar("T")


class Condition:
    """Fibers wait on it for a broadcast. The label shows in dumps."""

    __slots__ = ("__weakref__", "_waiters", "label")

    def __init__(self, label: str | None = None) -> None:
        self.label = label
        self._waiters: WaitQueue[None] = WaitQueue()

    def __repr__(self) -> str:
        name = "" if self.label is None else f" {self.label!r}"
        return f"<condition{name}, {len(self._waiters)} waiting>"

    async def wait(self, mutex: Mutex) -> None:
        """Unlock the mutex, wait for a broadcast, and lock it again; no broadcast after the unlock is missed.

        However it ends, by Cancelled too, the mutex is held again, unless it is poisoned: then Poisoned is raised.
        Raises RuntimeError if this fiber does not hold the mutex.
        """

        def begin(suspension: Suspension[None]) -> Callable[[Any], object]:
            withdraw = self._wait(suspension)
            try:
                mutex.unlock()
            except BaseException:
                withdraw(suspension)
                raise
            return withdraw

        check()
        lock = mutex._same_lock()
        try:
            await suspend(begin, "Condition.wait", self)
        except CancelledError:
            # Cancelled in `begin`, the mutex was never let go.
            if not mutex._is_mine():
                await to_the_end(lock)
            raise
        await to_the_end(lock)

    async def wait_no_mutex(self) -> None:
        """Wait for a broadcast. One that comes between reading a state and this call is missed."""
        await suspend(self._wait, "Condition.wait_no_mutex", self)

    def broadcast(self) -> None:
        """Wake all who wait at this moment, in order. May be called from any thread and from a signal handler."""
        if self._waiters.wake_all(None):
            loop = asyncio._get_running_loop()
            if loop is not None:
                # In a signal handler the loop may sit in its selector, and must be told that there is work.
                loop.call_soon_threadsafe(_nothing)

    @overload
    async def loop_no_mutex(self, f: Callable[[], Awaitable[T | None]]) -> T: ...
    @overload
    async def loop_no_mutex(self, f: Callable[[], T | None]) -> T: ...
    async def loop_no_mutex(self, f: Callable[[], Any]) -> Any:
        """Call `f()`, plain or `async`, now and after each broadcast, until it returns something but None.

        It waits for broadcasts from before each call on, so that none is missed. Returns what f returns.
        """
        check()
        while True:
            heard: Promise[None]
            heard, resolver = Promise.create("a broadcast")
            notice = _Notice(resolver)
            withdraw = self._wait(notice)
            try:
                result = await call(f)
                if result is not None:
                    return result
                await suspend(heard.when_resolved, "Condition.loop_no_mutex", self)
            finally:
                withdraw(notice)

    def _wait(self, waiter: Waiter[None]) -> Callable[[Any], object]:
        self._waiters.join(waiter)
        return self._waiters.withdraw

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} travels only between domains: as a job's argument or result, or inside another one")


class _Notice:
    """Stands in the queue for a fiber that does not wait yet."""

    __slots__ = ("_resolver",)

    def __init__(self, resolver: Resolver[None]) -> None:
        self._resolver = resolver

    def resume(self, value: None) -> bool:
        return self._resolver.try_resolve(value)

    def throw(self, error: BaseException) -> bool:
        return self._resolver.try_fail(error)


def _nothing() -> None:
    """What a loop is woken for, when that is all."""
