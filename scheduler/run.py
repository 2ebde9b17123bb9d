"""Runs a program on an event loop of its own: a root fiber in a root switch, signals, and an end without remains.

The first Ctrl-C (SIGINT) cancels the root switch, and everything unwinds; when that is done KeyboardInterrupt is
raised. A second one raises KeyboardInterrupt wherever the program is, and ends the run: what can unwind without
waiting still does. SIGTERM does the same with SystemExit(143).
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar, cast

from domains.scheduler.context import Context, FiberTask
from domains.scheduler.signals import Interruption, signals_handled, waking_on_signals
from domains.scheduler.switch import Switch

__all__ = ["event_loop_factory", "new_event_loop", "run"]

T = TypeVar("T")

_LAST_TURNS = 100


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes uvloop's loops where it is installed, else asyncio's own."""
    try:
        uvloop: Any = importlib.import_module("uvloop")
    except ImportError:
        return asyncio.new_event_loop
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)


_COLLECT_AFTER = (10_000, 10, 10)
"""When garbage is collected while a program runs. By CPython's own, smaller numbers the young objects of thousands of
fibers are walked again and again: that took half of the time of fibers that each wait for a small job."""

_COLLECT_BY_DEFAULT = {(700, 10, 10), (2000, 10, 10), (2000, 10, 0)}


@contextmanager
def _collecting_less_often(in_main_thread: bool) -> Iterator[None]:
    """Unless the program has said itself how often garbage is to be collected, or this loop is only a part of it."""
    before = gc.get_threshold()
    if not in_main_thread or before not in _COLLECT_BY_DEFAULT:
        yield
        return
    gc.set_threshold(*_COLLECT_AFTER)
    try:
        yield
    finally:
        if gc.get_threshold() == _COLLECT_AFTER:
            gc.set_threshold(*before)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's loop where it is installed, else asyncio's own."""
    return event_loop_factory()()


def run(
    main: Callable[[], Awaitable[T]],
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = new_event_loop,
    handle_signals: bool = True,
    dump_on_signal: int | None = None,
) -> T:
    """Run `await main()` in a root fiber, and return its result.

    When it is over, whatever tasks are left are cancelled, async generators and the thread pool are shut down, and the
    loop is closed. Signals are handled in the main thread only, and handlers that a program has set itself are left
    alone. `dump_on_signal`, such as `signal.SIGUSR1`, writes `fiber.dump()` to the standard error stream. Raises
    RuntimeError inside a running event loop.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("an event loop runs in this thread already: await the function instead of running it")
    in_main_thread = threading.current_thread() is threading.main_thread()
    root = Switch("main")
    interruption = Interruption(root)
    # From before there is a loop until it is closed: what opens and closes it is not to be cut in two.
    with signals_handled(interruption, handle_signals and in_main_thread, dump_on_signal):
        loop = loop_factory()
        try:
            asyncio.set_event_loop(loop)
            task = _root_task(loop, root, main)
            interruption.begin(loop)
            with (
                _collecting_less_often(in_main_thread),
                waking_on_signals(loop) if handle_signals and in_main_thread else nullcontext(),
            ):
                result = _run_to_the_end(loop, root, task, interruption)
        finally:
            try:
                try:
                    if not interruption.is_immediate:
                        _cancel_remaining_tasks(loop)
                        loop.run_until_complete(loop.shutdown_asyncgens())
                        loop.run_until_complete(loop.shutdown_default_executor())
                finally:
                    if interruption.is_immediate:  # as it may have become only now
                        _unwind_without_waiting(loop)
            finally:
                asyncio.set_event_loop(None)
                loop.close()
    if interruption.error is not None:
        raise interruption.error
    return result


def _run_to_the_end(
    loop: asyncio.AbstractEventLoop, root: Switch, task: asyncio.Task[T], interruption: Interruption
) -> T:
    try:
        return loop.run_until_complete(task)
    except BaseException as error:
        if not task.done() and not root.is_cancelled:
            # Raised in a callback or in somebody's task: it is the program that ends, and all in it see that.
            loop.call_soon(root.interrupt, error)
        ended_by = interruption.error
        if ended_by is None or error is ended_by:
            raise
        if interruption.is_immediate:
            raise ended_by from None
        if isinstance(error, asyncio.CancelledError):
            raise ended_by from error
        raise


def _root_task(loop: asyncio.AbstractEventLoop, root: Switch, main: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
    outcome: list[T] = []

    async def body() -> T:
        async with root:
            outcome.append(await main())
        if not outcome:
            raise asyncio.CancelledError
        return outcome[0]

    fiber = FiberTask(body(), loop=loop, name="main")
    fiber.context = Context(None, "root")
    fiber.suspension = None
    fiber.told = None
    fiber.delivered = 0
    fiber.kept_out = 0
    fiber.early_cancel = None
    fiber.context.fibers[fiber] = None
    return fiber


def _unwind_without_waiting(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel everything, and give it a number of turns, not time; then throw away what still waits, under `protect`."""
    for task in asyncio.all_tasks(loop):
        task.cancel()
    for _ in range(_LAST_TURNS):
        if not asyncio.all_tasks(loop):
            return
        loop.call_soon(loop.stop)
        loop.run_forever()
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is no news
        coroutine = task.get_coro()
        if coroutine is not None:
            with suppress(BaseException):  # what wants to wait as it is thrown away cannot
                coroutine.close()


def _cancel_remaining_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    for task in tasks:
        if not task.cancelled() and task.exception() is not None:
            loop.call_exception_handler(
                {
                    "message": "a task failed while it was cancelled at the end of the run",
                    "exception": task.exception(),
                    "task": task,
                }
            )
