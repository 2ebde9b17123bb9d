"""Ctrl-C that waits until what it must not cut in two is whole: the import of modules, some of them in C.

Modules half imported are not to be trusted. msgspec ends the process if it is interrupted while it looks at a type, and
Python itself loses a KeyboardInterrupt that comes while it takes an import's lock away. The same goes for whatever
other signals a program has handlers for, which may raise as well.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["interrupts_held"]


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """The handlers of signals that come within this are called at its end, once for each signal.

    They are exchanged, and the signals not blocked: that would leave these to other threads, for all of which Python
    calls the handlers in this one. A thread that is not the main one is not interrupted, and nothing is done in it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
    came: dict[int, FrameType | None] = {}

    def note(number: int, frame: FrameType | None) -> None:
        came[number] = frame

    def give_back() -> None:
        for number in reversed(handlers):
            if signal.getsignal(number) is note:
                signal.signal(number, handlers[number])

    with contextlib.ExitStack() as at_the_end:
        try:
            # That of Ctrl-C is the first that is held, and the last that is let go.
            for number in sorted(map(int, signal.valid_signals()), key=signal.SIGINT.__ne__):
                if callable(handler := signal.getsignal(number)):
                    handlers[number] = handler
                    signal.signal(number, note)
            yield
        finally:
            try:
                give_back()
            finally:
                give_back()  # the others too, where one that is back already was called, and has raised
                # Called, and not raised anew: event loops have heard of them by other ways already.
                for number, frame in came.items():
                    at_the_end.callback(handlers[number], number, frame)
