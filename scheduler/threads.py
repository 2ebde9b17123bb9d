"""Blocking calls off the loop, in threads.

A call that may be abandoned gets a daemon thread of its own, because nobody knows when it ends; all others share the
loop's thread pool. How many calls are under way on a loop is counted, for loops whose time stands still meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
import weakref
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

from domains.scheduler.context import check
from domains.scheduler.promise import Promise, Raised, Resolver
from domains.scheduler.suspend import suspend

__all__ = ["calls_under_way", "run_in_thread"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_under_way: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Counter[None]] = weakref.WeakKeyDictionary()


def calls_under_way(loop: asyncio.AbstractEventLoop) -> int:
    """How many calls in threads this loop waits for; a call that was abandoned counts no more."""
    return _under_way[loop][None] if loop in _under_way else 0


async def run_in_thread(f: Callable[[*Ts], T], *args: *Ts, cancellable: bool = False) -> T:
    """Call `f(*args)` in a thread, with a copy of this fiber's context variables, and return its result.

    Raises what f raises. Cancelling waits for the call to end, and its result is returned; with `cancellable` the call
    is abandoned, and its result dropped.
    """
    check()
    loop = asyncio.get_running_loop()
    promise: Promise[T]
    promise, resolver = Promise.create(getattr(f, "__name__", None))
    call = functools.partial(_call, resolver, functools.partial(contextvars.copy_context().run, f, *args))
    if cancellable:
        threading.Thread(target=call, name=f"run_in_thread {promise.label}", daemon=True).start()
    else:
        loop.run_in_executor(None, call)
    counter = _under_way.setdefault(loop, Counter())
    counter[None] += 1
    try:
        return await promise if cancellable else await _outcome(promise, f)
    finally:
        counter[None] -= 1


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


def _call(resolver: Resolver[Any], call: Callable[[], Any]) -> None:
    """In the thread. Nobody may wait for the outcome any more, or the loop be closed."""
    try:
        value = call()
    except BaseException as error:
        with contextlib.suppress(RuntimeError):
            resolver.try_fail(error)
    else:
        with contextlib.suppress(RuntimeError):
            resolver.try_resolve(value)
