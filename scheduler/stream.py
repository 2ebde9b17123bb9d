"""A bounded queue between fibers: items leave in the order of their adds, takers are served in that of their takes.

Invariants: takers wait only while nothing is there; adders wait only while it is full; so a nonblocking call never
overtakes one that waits. Capacity 0 is a rendezvous: an add is done when a taker has that very item. Closed is for
good: what is there can still be taken. Belongs to the loop's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar, cast

from domains.errors import Closed
from domains.scheduler.context import check
from domains.scheduler.suspend import suspend
from domains.scheduler.waiters import Waiter, WaitQueue

__all__ = ["Stream"]

T = TypeVar("T")


class Stream(Generic[T]):
    """Holds up to `capacity` items; the label shows in errors and dumps.

    Raises TypeError or ValueError for a capacity that is no int of at least 0.
    """

    def __init__(self, capacity: int, *, label: str | None = None) -> None:
        if type(capacity) is not int:
            raise TypeError(f"capacity must be an int, not {type(capacity).__name__} {capacity!r}")
        if capacity < 0:
            raise ValueError(f"capacity must be at least 0, but is {capacity}")
        self.capacity = capacity
        self.label = label
        self._local_capacity = capacity
        """The capacity while only this domain knows the stream, else 0: then what there is room for takes more to say.

        So the methods that anybody may have taken hold of before a stream is shared, or not any more, go right after.
        """
        self._items: deque[T] = deque()
        self._takers: WaitQueue[T] = WaitQueue()
        self._adders: WaitQueue[None] = WaitQueue()
        self._closed = False

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        name = "" if self.label is None else f" {self.label!r}"
        return f"<stream{name} of capacity {self.capacity}, {len(self)} items{state}>"

    def __len__(self) -> int:
        """How many items it holds; those of waiting adders do not count."""
        return len(self._items)

    @property
    def is_empty(self) -> bool:
        return not self._items

    async def add(self, item: T) -> None:
        """Put an item at the end; waits while the stream is full, behind those who wait already.

        Raises Closed if the stream is closed, before or while it waits. A cancelled add has added nothing.
        """
        check()
        if not self.add_nonblocking(item):
            await suspend(lambda suspension: self._wait_to_add(suspension, item), "Stream.add", self)

    def add_nonblocking(self, item: T) -> bool:
        """Put an item at the end, unless that would have to wait; tells whether it did. Raises Closed."""
        if self._closed:
            raise Closed(f"{self!r} takes no more items")
        if self._takers and self._takers.wake_first(item):
            return True
        if len(self._items) < self._local_capacity:
            self._items.append(item)
            return True
        return self._put(item)

    def _put(self, item: T) -> bool:
        """Put an item at the end of a stream that others know, if there is room."""
        return False

    async def take(self) -> T:
        """Take the first item; waits while there is none, behind those who wait already.

        Raises Closed if the stream is closed and nothing is left. A cancelled take has taken nothing.
        """
        check()
        items = self._items
        if 0 < len(items) < self._local_capacity:  # then nobody waits
            return items.popleft()
        found, item = self._take()
        return item if found else await self._take_in_turn()

    async def _take_in_turn(self) -> T:
        if self._is_drained:
            raise Closed(f"{self!r} has no more items")
        return await suspend(self._wait_to_take, "Stream.take", self)

    def take_nonblocking(self) -> T | None:
        """Take the first item, or return None if a take would have to wait. Raises Closed as `take`."""
        found, item = self._take()
        if not found and self._is_drained:
            raise Closed(f"{self!r} has no more items")
        return item if found else None

    def _wait_to_add(self, waiter: Waiter[None], item: T) -> Callable[[Any], object]:
        self._adders.join(waiter, item)
        return self._adders.withdraw

    def _wait_to_take(self, waiter: Waiter[T]) -> Callable[[Any], object]:
        self._takers.join(waiter)
        return self._takers.withdraw

    def _take(self) -> tuple[bool, T]:
        if self._items:
            item = self._items.popleft()
            while self._adders:
                entry = self._adders.pop_first()
                if entry is not None and entry[0].resume(None):
                    self._items.append(entry[1])
                    break
            return True, item
        while self._adders:
            entry = self._adders.pop_first()
            if entry is not None and entry[0].resume(None):
                return True, entry[1]
        return False, cast(T, None)

    def close(self) -> None:
        """No more items come: waiting adders and, once nothing is left, takers raise Closed. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._adders.throw_all(lambda: Closed(f"{self!r} was closed while an item waited to be added"))
            self._has_closed()

    def _has_closed(self) -> None:
        self._tell_takers()

    @property
    def _is_drained(self) -> bool:
        """Whether no more items can come, once those are taken that are there."""
        return self._closed

    def _tell_takers(self) -> None:
        self._takers.throw_all(lambda: Closed(f"{self!r} was closed and has no more items"))

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        check()
        items = self._items
        if 0 < len(items) < self._local_capacity:
            return items.popleft()
        found, item = self._take()
        if found:
            return item
        try:
            return await self._take_in_turn()
        except Closed:
            raise StopAsyncIteration from None
