"""Runs a program on an event loop of its own: a root fiber in a root switch, signals, and an end without remains.

The first Ctrl-C (SIGINT) cancels the root switch, and everything unwinds; when that is done KeyboardInterrupt is
raised. A second one raises KeyboardInterrupt wherever the program is, and ends the run: what can unwind without
waiting still does. SIGTERM does the same with SystemExit(143).
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any, TypeVar, cast

from domains.scheduler.context import Context, FiberTask
from domains.scheduler.dump import dump_to_stderr
from domains.scheduler.switch import Switch

__all__ = ["event_loop_factory", "new_event_loop", "run"]

T = TypeVar("T")

_TERMINATED = 128 + signal.SIGTERM
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
    root = Switch("main")
    loop = loop_factory()
    interruption = _Interruption(loop, root)
    try:
        asyncio.set_event_loop(loop)
        task = _root_task(loop, root, main)
        in_main_thread = threading.current_thread() is threading.main_thread()
        with (
            _collecting_less_often(in_main_thread),
            _signals(interruption, handle_signals and in_main_thread, dump_on_signal),
        ):
            try:
                result = loop.run_until_complete(task)
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
        if interruption.error is not None:
            raise interruption.error
        return result
    finally:
        try:
            if interruption.is_immediate:
                _unwind_without_waiting(loop)
            else:
                _cancel_remaining_tasks(loop)
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


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
    fiber.early_cancel = None
    fiber.context.fibers[fiber] = None
    return fiber


class _Interruption:
    """None -> asked to end -> asked to end at once, by a first and a second signal."""

    def __init__(self, loop: asyncio.AbstractEventLoop, root: Switch) -> None:
        self.loop = loop
        self._root = root
        self.error: BaseException | None = None
        self.is_immediate = False
        self._report_others: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None

    def on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupt(KeyboardInterrupt())

    def on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._interrupt(SystemExit(_TERMINATED))

    def _interrupt(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
            self.loop.call_soon_threadsafe(self._root.interrupt, error)
        else:
            self.error = error
            if not self.is_immediate:
                self.is_immediate = True
                self._report_others = self.loop.get_exception_handler()
                self.loop.set_exception_handler(self._report)
            self.loop.call_soon_threadsafe(self.loop.stop)  # for code that catches what is raised here
            raise error

    def _report(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What ends the program is raised out of it, and no news of the task in which it came."""
        if isinstance(context.get("exception"), KeyboardInterrupt | SystemExit):
            return
        if self._report_others is not None:
            self._report_others(loop, context)
        else:
            loop.default_exception_handler(context)


@contextmanager
def _signals(interruption: _Interruption, handle: bool, dump_on_signal: int | None) -> Iterator[None]:
    """Handlers for the time of the run."""
    handlers: dict[int, Any] = {}
    if handle:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            handlers[signal.SIGINT] = interruption.on_interrupt
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            handlers[signal.SIGTERM] = interruption.on_terminate
        if dump_on_signal is not None:
            handlers[dump_on_signal] = dump_to_stderr
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def restore() -> None:
        for number, handler in previous.items():
            if signal.getsignal(number) == handlers[number]:
                signal.signal(number, handler)

    if handle:
        _restorers.append(restore)
    try:
        with _waking_on_signals(interruption.loop) if handle else nullcontext():
            yield
    finally:
        if restore in _restorers:  # not in a child that was forked meanwhile
            _restorers.remove(restore)
        restore()


_restorers: list[Callable[[], None]] = []
"""Of the runs that handle signals, from the outermost to the innermost."""


_before_fork = threading.local()


def _hold_signals() -> None:
    """Until the child has handlers of its own, in which a signal that comes at once would be lost."""
    if _restorers:
        _before_fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


def _let_signals_come() -> None:
    if (mask := _before_fork.__dict__.pop("mask", None)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin_as_child() -> None:
    """A signal is the forked child's own, as if nothing ran, and does not wake its parent's loop."""
    if _restorers:
        signal.set_wakeup_fd(-1)
    while _restorers:
        _restorers.pop()()
    _let_signals_come()


os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals_come, after_in_child=_begin_as_child)


@contextmanager
def _waking_on_signals(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let every signal end the loop's sleep: its handler runs only when Python does.

    Without this a signal is heard at once only if it hits this very thread within its sleep, not just before.
    """
    pipe = getattr(loop, "_csock", None)  # asyncio's own, which wakes it; uvloop does all this itself
    if pipe is None:
        yield
        return
    previous = signal.set_wakeup_fd(pipe.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)


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
