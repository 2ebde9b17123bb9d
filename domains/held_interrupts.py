"""Ctrl-C that waits until what it must not cut in two is whole: the import of modules, some of them in C.

Modules half imported are not to be trusted. msgspec ends the process if it is interrupted while it looks at a type, and
Python itself loses a KeyboardInterrupt that comes while it takes an import's lock away.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["interrupts_held"]


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Whatever Ctrl-C leads to happens at the end of this, and not within; several count as one.

    The handler is exchanged, and the signal not blocked: that would leave it to other threads, for all of which Python
    handles it in this one. A thread that is not the main one is not interrupted, and nothing is done in it.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    handler = signal.getsignal(signal.SIGINT)
    try:
        if callable(handler):
            signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread
        handler = None
    try:
        yield
    finally:
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
            if came:
                signal.raise_signal(signal.SIGINT)
