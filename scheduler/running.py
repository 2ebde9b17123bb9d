"""Which task runs now: every operation begins with this question, so it is answered in as few steps as possible.

`running_task(here.loop)` is the task that runs in this thread, on the loop that `here` remembers: asyncio lets no loop
run inside another one's task. Where it is no fiber of ours (None, another task, RuntimeError), one has to look
properly, by `running_task(running_loop())`, and to remember that loop. From Python 3.12 on asyncio finds the loop
quickly, and nothing is remembered; before, it asks the system for the number of the process each time, which takes
longer than all the rest of an uncontended lock. All of it may be called from any thread.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any, cast

__all__ = ["here", "remember", "running_loop", "running_task"]

_FindTask = Callable[[asyncio.AbstractEventLoop | None], asyncio.Task[Any] | None]


class _Remembered(threading.local):
    """The loop on which this thread has looked last."""

    __slots__ = ()

    def __init__(self) -> None:  # in each thread
        self.loop: asyncio.AbstractEventLoop | None = None


class _Nothing:
    """Where asyncio itself is quick."""

    __slots__ = ()

    loop = None


running_loop = asyncio._get_running_loop
if sys.version_info >= (3, 12):
    running_task = cast(_FindTask, asyncio.current_task)
    here: _Remembered | _Nothing = _Nothing()
else:
    running_task = cast(_FindTask, cast(Any, asyncio.tasks)._current_tasks.get)
    here = _Remembered()


def remember(loop: asyncio.AbstractEventLoop) -> None:
    """The next look may be at this loop."""
    if isinstance(here, _Remembered) and here.loop is not loop:
        here.loop = loop
