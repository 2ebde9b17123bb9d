"""A pool of resources that fibers share, such as connections: made when needed, used by one fiber at a time.

Invariants: at most `size` resources are alive, not counting the surplus of `never_wait`; fibers wait only while all of
them are in use; a returned resource, or the place of one that is gone, goes to the first of those who wait. Belongs
to the loop's thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, NoReturn, TypeVar

from domains.scheduler.awaitables import call
from domains.scheduler.cancel import protect
from domains.scheduler.context import check
from domains.scheduler.suspend import suspend
from domains.scheduler.waiters import Waiter, WaitQueue

__all__ = ["Pool"]

T = TypeVar("T")


class _Place(Generic[T]):
    """The right to one resource of the pool. Holds it, or is empty: then the resource is still to be made."""

    __slots__ = ("resources",)

    def __init__(self) -> None:
        self.resources: list[T] = []


class Pool(Generic[T]):
    """Up to `size` resources.

    `create()` makes one; `validate(x)`, called before x is used again, tells whether it is still good; `dispose(x)`
    ends one that is not. Each may be plain or `async`. Raises TypeError or ValueError for a size that is no int of at
    least 1.
    """

    def __init__(
        self,
        size: int,
        create: Callable[[], Awaitable[T]] | Callable[[], T],
        validate: Callable[[T], Awaitable[bool] | bool] | None = None,
        dispose: Callable[[T], object] | None = None,
        *,
        label: str | None = None,
    ) -> None:
        if type(size) is not int:
            raise TypeError(f"size must be an int, not {type(size).__name__} {size!r}")
        if size < 1:
            raise ValueError(f"size must be at least 1, but is {size}")
        self.size = size
        self.label = label
        self._create = create
        self._validate = validate
        self._dispose = dispose
        self._unmade = size
        self._idle: list[_Place[T]] = []  # the one used last is used first: the others may then time out
        self._waiters: WaitQueue[_Place[T]] = WaitQueue()

    def __repr__(self) -> str:
        name = "" if self.label is None else f" {self.label!r}"
        busy = self.size - self._unmade - len(self._idle)
        return f"<pool{name} of {self.size}, {busy} in use, {len(self._waiters)} waiting>"

    def use(self, *, never_wait: bool = False) -> AbstractAsyncContextManager[T]:
        """`async with pool.use() as x:` a resource of one's own, for the block; waits while all are in use.

        With `never_wait` one more is made instead, and disposed of after the block. However the block ends, the
        resource goes back. Raises what `create`, `validate` and `dispose` raise, to the one who needed them; the pool
        stays whole, and the next who waits tries again. A cancelled wait takes nothing.
        """
        return self._use(never_wait)

    @asynccontextmanager
    async def _use(self, never_wait: bool) -> AsyncIterator[T]:
        check()
        place = self._take_place()
        if place is None and never_wait:
            async with self._surplus() as resource:
                yield resource
            return
        if place is None:
            place = await suspend(self._wait, "Pool.use", self)
            assert place is not None
        try:
            await self._make_sound(place)
            yield place.resources[0]
        finally:
            self._give_back(place)

    @asynccontextmanager
    async def _surplus(self) -> AsyncIterator[T]:
        resource = await call(self._create)
        try:
            yield resource
        finally:
            await self._end(resource)

    async def _make_sound(self, place: _Place[T]) -> None:
        """See that the place holds a resource that is good."""
        if place.resources and self._validate is not None and not await call(self._validate, place.resources[0]):
            await self._end(place.resources.pop())
        if not place.resources:
            place.resources.append(await call(self._create))

    async def _end(self, resource: T) -> None:
        if self._dispose is not None:
            with protect():
                await call(self._dispose, resource)

    def _take_place(self) -> _Place[T] | None:
        if self._idle:
            return self._idle.pop()
        if self._unmade:
            self._unmade -= 1
            return _Place()
        return None

    def _give_back(self, place: _Place[T]) -> None:
        if self._waiters.wake_first(place):
            return
        if place.resources:
            self._idle.append(place)
        else:
            self._unmade += 1

    def _wait(self, waiter: Waiter[_Place[T]]) -> Callable[[Any], object]:
        self._waiters.join(waiter)
        return self._waiters.withdraw

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} travels only between domains: as a job's argument or result, or inside another one")
