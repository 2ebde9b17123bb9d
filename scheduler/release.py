"""What is to be released when a switch ends: last come, first run, protected from cancellation.

A hook is Kept until it is removed or begins to run: one of the two, and once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from domains.scheduler.awaitables import is_awaitable
from domains.scheduler.cancel import protect

__all__ = ["Hook", "ReleaseHooks"]


class Hook:
    """Something to be released when its switch ends."""

    __slots__ = ("_hooks", "_release")

    def __init__(self, hooks: dict[Hook, None], release: Callable[[], Any]) -> None:
        self._hooks = hooks
        self._release = release

    def remove(self) -> bool:
        """Take it off its switch. True exactly once, and never after it has run."""
        try:
            del self._hooks[self]
        except KeyError:
            return False
        return True


class ReleaseHooks:
    """Those of one switch."""

    __slots__ = ("_hooks",)

    def __init__(self) -> None:
        self._hooks: dict[Hook, None] = {}

    def add(self, release: Callable[[], Any]) -> Hook:
        hook = Hook(self._hooks, release)
        self._hooks[hook] = None
        return hook

    async def run(self, failed: Callable[[BaseException], None]) -> None:
        """Release everything, also what is added meanwhile; each failure is told, and the rest runs all the same."""
        while self._hooks:
            hook, _ = self._hooks.popitem()
            try:
                with protect():
                    released = hook._release()
                    if is_awaitable(released):
                        await released
            except BaseException as error:
                failed(error)
