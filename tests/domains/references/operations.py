"""Every operation on an object of another domain, taken apart so that a test can stop somebody in the midst of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from domains import (
    Closed,
    Condition,
    Lazy,
    Mutex,
    Poisoned,
    Pool,
    Promise,
    Semaphore,
    Stream,
)

Hold = Callable[[], Any]


class Operation:
    """One operation: what it needs at home, what the user does, how it is let go on, and what must hold afterwards.

    Made in each domain that takes part; only the one at home calls `make`, which leaves the operation one that waits.
    """

    request = "CallObject"
    answer = "CallAnswered"
    withdrawal = "WithdrawCall"
    tell = ""
    """What the user is sure to say when it has what it asked for: that it has, or is done with it."""
    skip_requests = 0
    skip_answers = 0

    async def make(self) -> tuple[Any, ...]:
        """At home: the objects that are handed to the others."""
        raise NotImplementedError

    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        """The operation; calls and awaits `held` when it is done, and before it gives back what it got."""
        raise NotImplementedError

    def free(self) -> None:
        """At home: let an operation that waits go on; may be called again."""
        raise NotImplementedError

    def check(self, granted: bool) -> None:
        """At home, after the user's death: nothing of it is left. `granted` if it may have got what it waited for."""

    after_death: tuple[type[BaseException], ...] = ()
    """What else an operation may raise after a user has died who had been let go on."""


class Take(Operation):
    async def make(self) -> tuple[Any, ...]:
        self.stream: Stream[str] = Stream(5)
        return (self.stream,)

    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        item = await things[0].take()
        await held()
        return item

    def free(self) -> None:
        self.stream.add_nonblocking("item")

    def check(self, granted: bool) -> None:
        assert not self.stream._takers
        assert self.stream.is_empty or granted


class Iterate(Take):
    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        items = [item async for item in things[0]]
        await held()
        return items

    def free(self) -> None:
        self.stream.close()


class TakeClosed(Iterate):
    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        try:
            await things[0].take()
        except Closed:
            await held()
        else:
            raise AssertionError("there was an item")


class Add(Operation):
    capacity = 1

    async def make(self) -> tuple[Any, ...]:
        self.stream: Stream[str] = Stream(self.capacity)
        for _ in range(self.capacity):
            await self.stream.add("first")
        return (self.stream,)

    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        await things[0].add("late")
        await held()

    def free(self) -> None:
        self.stream.take_nonblocking()

    def check(self, granted: bool) -> None:
        assert not self.stream._adders
        assert len(self.stream) <= self.capacity
        if not granted:
            assert len(self.stream) == self.capacity
            seen = [self.stream.take_nonblocking() for _ in range(self.capacity)]
            assert "late" not in seen
            for _ in range(self.capacity):
                self.stream.add_nonblocking("first")


class Rendezvous(Add):
    capacity = 0


class Locked(Operation):
    """What is locked at home by the fiber that makes it. The harness keeps that fiber for `free`."""

    tell = "TellObject"

    async def make(self) -> tuple[Any, ...]:
        self.mutex = Mutex("it")
        assert self.mutex._try_lock("home")
        return (self.mutex,)

    def free(self) -> None:
        if self.mutex._state == "home":
            self.mutex._unlock("home")

    def check(self, granted: bool) -> None:
        assert not self.mutex._waiters
        assert self.mutex._state == "home" or granted
        assert not self.mutex.is_locked or not granted
        assert not self.mutex.is_poisoned

    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        await things[0].lock()
        await held()
        things[0].unlock()


class Reading(Locked):
    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        async with things[0].ro():
            await held()


class Writing(Locked):
    after_death = (Poisoned,)

    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        async with things[0].rw():
            await held()

    def check(self, granted: bool) -> None:
        assert not self.mutex._waiters
        assert self.mutex._state == "home" or granted
        assert not self.mutex.is_locked or not granted


class ProtectedWriting(Writing):
    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        async with things[0].rw(protect=True):
            await held()


class Acquire(Operation):
    tell = "TellObject"

    async def make(self) -> tuple[Any, ...]:
        self.semaphore = Semaphore(1)
        await self.semaphore.acquire()
        self.is_mine = True
        return (self.semaphore,)

    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        async with things[0]:
            await held()

    def free(self) -> None:
        if self.is_mine:
            self.is_mine = False
            self.semaphore.release()

    def check(self, granted: bool) -> None:
        assert not self.semaphore._waiters
        assert self.semaphore.value + self.is_mine == 1


class WaitNoMutex(Operation):
    async def make(self) -> tuple[Any, ...]:
        self.condition = Condition()
        return (self.condition,)

    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        await things[0].wait_no_mutex()
        await held()

    def free(self) -> None:
        self.condition.broadcast()

    def check(self, granted: bool) -> None:
        assert not self.condition._waiters


class Loop(WaitNoMutex):
    skip_answers = 1  # that the wait is registered

    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        seen: list[int] = []

        def second() -> int | None:
            seen.append(1)
            return len(seen) if len(seen) == 2 else None

        assert await things[0].loop_no_mutex(second) == 2
        await held()


class WaitMutex(WaitNoMutex):
    """The lock is free, so what waits is the wait itself."""

    skip_answers = 1  # that the wait is registered

    async def make(self) -> tuple[Any, ...]:
        self.mutex = Mutex()
        self.condition = Condition()
        return self.mutex, self.condition

    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        mutex, condition = things[:2]
        async with mutex.ro():
            await condition.wait(mutex)
            assert mutex._is_mine()
            await held()

    def check(self, granted: bool) -> None:
        super().check(granted)
        assert not self.mutex.is_locked
        assert not self.mutex._waiters
        assert not self.mutex.is_poisoned


class UseResource(Operation):
    tell = "TellObject"

    async def make(self) -> tuple[Any, ...]:
        self.pool = Pool(1, lambda: "resource")
        self.use: AbstractAsyncContextManager[str] | None = self.pool.use()
        await self.use.__aenter__()
        self.returning: asyncio.Future[Any] | None = None
        return (self.pool,)

    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        async with things[0].use() as resource:
            await held()
            return resource

    def free(self) -> None:
        if self.use is not None:
            use, self.use = self.use, None
            self.returning = asyncio.ensure_future(use.__aexit__(None, None, None))


class ForceAnew(Operation):
    async def make(self) -> tuple[Any, ...]:
        promise: Promise[str]
        promise, self.resolver = Promise.create()

        async def compute() -> str:
            return await promise

        self.lazy = self.make_lazy(compute)
        return (self.lazy,)

    def make_lazy(self, compute: Callable[[], Any]) -> Lazy[str]:
        return Lazy(compute, cancel="restart")

    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        value = await things[0].force()
        await held()
        return value

    def free(self) -> None:
        self.resolver.try_resolve("value")


class Force(ForceAnew):
    """Who is cancelled waits for the run all the same, for the sake of the others: so there is no withdrawing."""

    withdrawal = ""

    def make_lazy(self, compute: Callable[[], Any]) -> Lazy[str]:
        return Lazy(compute)


class AwaitPromise(Operation):
    request = "WatchPromise"
    answer = "PromiseResolved"
    withdrawal = ""

    async def make(self) -> tuple[Any, ...]:
        promise: Promise[str]
        promise, self.resolver = Promise.create()
        return (promise,)

    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        value = await things[0]
        await held()
        return value

    def free(self) -> None:
        self.resolver.try_resolve("value")


class AwaitFailure(AwaitPromise):
    async def act(self, things: tuple[Any, ...], held: Hold) -> Any:
        try:
            await things[0]
        except KeyError:
            await held()
        else:
            raise AssertionError("it has not failed")

    def free(self) -> None:
        self.resolver.try_fail(KeyError("there"))


OPERATIONS: list[type[Operation]] = [
    Take, Iterate, TakeClosed, Add, Rendezvous, Locked, Reading, Writing, ProtectedWriting, Acquire,
    WaitNoMutex, Loop, WaitMutex, UseResource, Force, ForceAnew, AwaitPromise, AwaitFailure,
]  # fmt: skip
