"""An event loop whose time is virtual, and which knows when nothing can ever run again.

When nothing is runnable, time jumps to the next deadline: a day of sleeps takes milliseconds. It stands still while
calls of `run_in_thread` or of an executor are under way, and goes at its real pace while sockets, pipes, signal
handlers or other threads may still bring something. When there is no deadline either, that is a deadlock: it is
described, and everything is cancelled because of it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import math
import selectors
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from domains.errors import Deadlock
from domains.scheduler.context import Context, Fiber, root_contexts
from domains.scheduler.dump import report, shown
from domains.scheduler.run import run
from domains.scheduler.threads import CallThread, calls_under_way

__all__ = ["MockLoop", "run_mock"]

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Asks the loop what to do when it would have to wait."""

    wait: Callable[[float | None], list[tuple[selectors.SelectorKey, int]]]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return self.poll(0)
        return self.wait(timeout)

    def poll(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready, at the latest after so many real seconds."""
        return super().select(timeout)


class MockLoop(asyncio.SelectorEventLoop):
    """Virtual time starts at 0. `deadlock` is the one that it has met, if any."""

    _clock_resolution: float  # asyncio's own

    def __init__(self) -> None:
        self._selecting = _Selector()
        self._selecting.wait = self._wait
        self._now = 0.0
        self._calls = 0
        self._handled_signals: set[int] = set()
        self._threads_before = set(threading.enumerate())
        self.deadlock: Deadlock | None = None
        super().__init__(self._selecting)
        self._own_registrations = len(self._selecting.get_map())

    def time(self) -> float:
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self._calls += 1
        future.add_done_callback(self._call_ended)
        return future

    def _call_ended(self, _: asyncio.Future[Any]) -> None:
        self._calls -= 1

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        super().add_signal_handler(sig, callback, *args)
        self._handled_signals.add(sig)

    def remove_signal_handler(self, sig: int) -> bool:
        self._handled_signals.discard(sig)
        return super().remove_signal_handler(sig)

    def _wait(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """Nothing is runnable; the next deadline is `timeout` virtual seconds away, or there is none.

        If it is more than a day away `timeout` is a day: nobody waits longer in one go.
        """
        others = self._others_may_bring_something()  # asked first: a thread may bring it and end, in between
        events = self._selecting.poll(0)
        if events:
            return events
        if self._calls or calls_under_way(self):
            return self._selecting.poll(None)
        if others:
            began = time.monotonic()
            events = self._selecting.poll(timeout)
            waited = time.monotonic() - began
            self._move_to(self._now + (timeout if timeout is not None and not events else waited))
            return events
        due = math.inf if timeout is None else self._scheduled[0].when()  # type: ignore[attr-defined]
        if due == math.inf:
            self._stuck()
        else:
            self._move_to(due)
        return []

    def _move_to(self, now: float) -> None:
        self._now = now
        # What is due within that of now is run: less than one step of the clock, and nothing would ever be.
        self._clock_resolution = max(self._clock_resolution, math.ulp(now))

    def _others_may_bring_something(self) -> bool:
        if len(self._selecting.get_map()) > self._own_registrations or self._handled_signals:
            return True
        workers: Any = getattr(concurrent.futures.thread, "_threads_queues", {})
        return any(
            thread not in workers and not (isinstance(thread, CallThread) and thread.is_over)
            for thread in threading.enumerate()
            if thread not in self._threads_before
        )

    def _stuck(self) -> None:
        if self.deadlock is not None:
            raise self.deadlock  # what it was cancelled for; and unwinding is stuck as well
        self.deadlock = Deadlock(_describe(self))
        for root in root_contexts():
            tasks = [fiber.living_task() for fiber in _fibers_in(root)]
            if any(task is not None and task.get_loop() is self for task in tasks):
                root.cancel(self.deadlock)


def _fibers_in(root: Context) -> Iterator[Fiber]:
    for _, context in root.tree():
        yield from list(context.fibers)


def _describe(loop: asyncio.AbstractEventLoop) -> str:
    stuck: list[str] = []
    tasks = {task for task in asyncio.all_tasks(loop) if not task.done()}
    for root in sorted(root_contexts(), key=lambda root: root.label != "root"):
        for fiber in _fibers_in(root):
            task = fiber.living_task()
            if task is not None and task in tasks:
                tasks.discard(task)
                told = report(fiber)
                waits = "waits in other code" if told.operation is None else f"waits in {told.operation}"
                target = "" if told.target is None else f" on {shown(told.target)}"
                stuck.append(f"fiber {told.name!r} of {told.switch} {waits}{target} at {told.file}:{told.line}")
    for task in sorted(tasks, key=lambda task: task.get_name()):
        frames = task.get_stack(limit=1)
        place = f" at {frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else ""
        stuck.append(f"task {task.get_name()!r}{place}")
    lines = "".join(f"\n  {line}" for line in stuck)
    return f"nothing can ever run again, and no deadline, thread or input is awaited; stuck:{lines}"


def run_mock(main: Callable[[], Awaitable[T]]) -> T:
    """Run `await main()` in virtual time. Raises Deadlock when nothing can ever run again, after unwinding.

    All else is as for `run`, signals included.
    """
    loop: MockLoop | None = None

    def open_loop() -> MockLoop:
        nonlocal loop
        loop = MockLoop()
        return loop

    try:
        result = run(main, loop_factory=open_loop)
    except Deadlock:
        raise
    except BaseException as error:
        if loop is None or loop.deadlock is None:
            raise
        raise loop.deadlock from (None if isinstance(error, asyncio.CancelledError) else error)
    assert loop is not None
    if loop.deadlock is not None:
        raise loop.deadlock
    return result
