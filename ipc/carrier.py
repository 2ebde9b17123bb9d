"""How a link's large buffers travel between processes of one machine: by the arena, in place of the link.

A program that uses the arena has one `ArenaUse`, and a carrier for each of its links. House-keeping runs on the
program's loop, once a second, for as long as there is something to keep.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from domains.ipc.arena import Arena, process_arena

__all__ = ["ArenaCarrier", "ArenaUse"]

_KEEPING_SECONDS = 1.0


class ArenaUse:
    """One program's use of the arena, from now until `close`; belongs to the running loop."""

    def __init__(self, arena: Arena | None = None) -> None:
        self.arena = process_arena() if arena is None else arena
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.arena.enter()

    def carrier(self) -> ArenaCarrier:
        """For one link."""
        return ArenaCarrier(self)

    def touch(self) -> None:
        """Something was lent or borrowed."""
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_later(_KEEPING_SECONDS, self._keep)

    def _keep(self) -> None:
        self._timer = None
        if self.arena.keep_house():
            self.touch()

    def close(self) -> None:
        """Give up what is not in use. Idempotent."""
        if not self._closed:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            self.arena.leave()


class ArenaCarrier:
    """One link's share."""

    def __init__(self, use: ArenaUse) -> None:
        self._use = use

    @property
    def is_interrupted(self) -> bool:
        return self._use.arena.is_busy

    def outgoing(self, buffers: Sequence[Any]) -> list[Any]:
        self._use.touch()
        return self._use.arena.lend(buffers, self)

    def incoming(self, buffers: Sequence[memoryview]) -> list[Any]:
        self._use.touch()
        return self._use.arena.borrow(buffers)

    def gone(self) -> None:
        self._use.arena.link_gone(self)
