"""Conditions in other domains than their home.

A wait is registered at the home, and known to be, before the mutex is unlocked: the home answers what comes behind the
registration. A broadcast is a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from domains.references.calls import Call, RemoteObject
from domains.references.kind import Kind
from domains.references.registry import References
from domains.scheduler import awaitables
from domains.scheduler.cancel import to_the_end
from domains.scheduler.condition import Condition
from domains.scheduler.context import check
from domains.scheduler.mutex import Mutex


class ConditionReference(RemoteObject, Condition):
    """A condition whose home is another domain."""

    __slots__ = ("_calls", "_loop", "_owes_broadcast", "home", "home_name", "number")

    def __init__(self, references: References, home: int, number: int, label: Any) -> None:
        super().__init__(label)
        self.home = home
        self.number = number
        self._calls = references.calls
        self._loop = asyncio.get_running_loop()
        self._owes_broadcast = False

    def __repr__(self) -> str:
        return self._describe("condition" if self.label is None else f"condition {self.label!r}")

    async def wait(self, mutex: Mutex) -> None:
        if not mutex._is_mine():
            raise RuntimeError(f"{mutex!r} must be held by the fiber that waits with it")
        lock = mutex._same_lock()
        call = await self._register()
        try:
            mutex.unlock()
        except BaseException:
            self._calls.withdraw(call)
            raise
        try:
            await call.outcome()
        except BaseException:  # cancelled, or the condition's home has died; the mutex may have another
            await to_the_end(lock)
            raise
        await to_the_end(lock)

    async def wait_no_mutex(self) -> None:
        await self._begin_to_wait().outcome()

    def broadcast(self) -> None:
        if asyncio._get_running_loop() is None:
            self._tell("broadcast")  # from a plain job or another thread
        else:
            # Perhaps from a signal handler, in the middle of something.
            self._owes_broadcast = True
            self._loop.call_soon_threadsafe(self._send_broadcast)

    async def loop_no_mutex(self, f: Callable[[], Any]) -> Any:
        while True:
            call = await self._register()
            try:
                result = await awaitables.call(f)
            except BaseException:
                self._calls.withdraw(call)
                raise
            if result is not None:
                self._calls.withdraw(call)
                return result
            await call.outcome()

    async def _register(self) -> Call:
        """Begin to wait; when this returns the home knows."""
        call = self._begin_to_wait()
        try:
            await self._call("fence")
        except BaseException:
            self._calls.withdraw(call)
            raise
        return call

    def _begin_to_wait(self) -> Call:
        """Wait for what is broadcast from now on: what this domain has broadcast before goes ahead."""
        check()
        self._send_broadcast()
        return self._calls.begin(self, "wait_no_mutex", ())

    def _send_broadcast(self) -> None:
        if self._owes_broadcast:
            self._owes_broadcast = False  # before it is sent: one that comes meanwhile is owed again
            self._tell("broadcast")


class ConditionKind(Kind):
    """How conditions travel."""

    name = "condition"
    classes: tuple[type, ...] = (Condition, ConditionReference)

    def __init__(self) -> None:
        self.operations = {
            "wait_no_mutex": lambda condition, served: condition._wait(served),
            "fence": lambda condition, served: served.resume(None) and None,
        }
        self.tells = {"broadcast": lambda export, sender: export.target.broadcast()}

    def make_reference(self, references: References, home: int, number: int, label: Any) -> Any:
        return ConditionReference(references, home, number, label)
