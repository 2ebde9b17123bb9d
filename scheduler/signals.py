"""What a signal means to a program that runs: it is asked to end, and then to end at once.

The handlers are a run's from before it has a loop until the loop is closed, and only as far as the program has set none
of its own. Invariant: a first signal raises nothing, wherever it comes; it is told to the root switch, and raised by
the run when all is over.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple

from domains.scheduler.dump import dump_to_stderr
from domains.scheduler.switch import Switch

__all__ = ["Interruption", "ends_at_once", "signals_handled", "waking_on_signals"]

_Reporter = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]

_TERMINATED = 128 + signal.SIGTERM


class Interruption:
    """None -> asked to end -> asked to end at once, by a first and a second signal."""

    def __init__(self, root: Switch) -> None:
        self.error: BaseException | None = None
        self.is_immediate = False
        self._root = root
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """The root's task is about to run on this loop; what has been asked for before reaches it now."""
        self._loop = loop
        if self.error is not None:
            loop.call_soon(self._root.interrupt, self.error)

    def on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupt(KeyboardInterrupt())

    def on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._interrupt(SystemExit(_TERMINATED))

    def _interrupt(self, error: BaseException) -> None:
        loop = self._loop
        if self.error is None:
            self.error = error
            if loop is not None:
                with suppress(RuntimeError):  # it is closed: nothing is left that could be told
                    loop.call_soon_threadsafe(self._root.interrupt, error)
            return
        self.error = error
        if loop is not None and not loop.is_closed():
            if not self.is_immediate:
                self.is_immediate = True
                loop.set_exception_handler(_reporter_of_others(loop.get_exception_handler()))
            loop.call_soon_threadsafe(loop.stop)  # for code that catches what is raised here
        raise error


def _reporter_of_others(before: _Reporter | None) -> _Reporter:
    """For a loop that ends at once: what ends the program is raised out of it, and no news of the task it came in.

    It refers to nothing of the program, which the closed loop would keep for as long as somebody remembers that.
    """

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), KeyboardInterrupt | SystemExit):
            return
        if before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    return report


@contextmanager
def signals_handled(interruption: Interruption, handle: bool, dump_on_signal: int | None) -> Iterator[None]:
    """Handlers for the time of the run."""
    if not handle:
        yield
        return
    wanted: list[tuple[int, Any, Any]] = [
        (signal.SIGTERM, signal.SIG_DFL, interruption.on_terminate),
        (signal.SIGINT, signal.default_int_handler, interruption.on_interrupt),
    ]
    if dump_on_signal is not None:
        wanted.insert(0, (dump_on_signal, signal.getsignal(dump_on_signal), dump_to_stderr))
    changed: list[tuple[int, Any, Any]] = []

    def restore() -> None:
        if run in _runs:  # not in a child that was forked meanwhile
            _runs.remove(run)
        # That of Ctrl-C comes back last: until then one that comes does not keep the others from it.
        for number, before, handler in changed:
            if signal.getsignal(number) == handler:
                signal.signal(number, before)

    run = _Run(interruption, restore)
    try:
        _runs.append(run)
        for number, before, handler in wanted:
            if signal.getsignal(number) == before:
                changed.append((number, before, handler))
                signal.signal(number, handler)
        yield
    finally:
        try:
            restore()
        finally:
            restore()  # what is left, where a second signal has cut it short


class _Run(NamedTuple):
    """One that handles signals."""

    interruption: Interruption
    restore: Callable[[], None]


_runs: list[_Run] = []
"""From the outermost to the innermost."""


def ends_at_once() -> bool:
    """Whether a second signal has come: what is raised from now on may be raised by that, and be nobody's failure."""
    return any(run.interruption.is_immediate for run in _runs)


_before_fork = threading.local()


def _hold_signals() -> None:
    """Until the child has handlers of its own, in which a signal that comes at once would be lost."""
    if _runs:
        _before_fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


def _let_signals_come() -> None:
    if (mask := _before_fork.__dict__.pop("mask", None)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin_as_child() -> None:
    """A signal is the forked child's own, as if nothing ran, and does not wake its parent's loop."""
    if _runs:
        signal.set_wakeup_fd(-1)
    while _runs:
        _runs.pop().restore()
    _let_signals_come()


os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals_come, after_in_child=_begin_as_child)


@contextmanager
def waking_on_signals(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
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
