"""The fair queue under every primitive: those who wait, in the order in which they came.

A waiter is anything with `resume(value) -> bool` and `throw(error) -> bool`, False meaning that it no longer waits:
a fiber's suspension, or one that stands for a fiber of another domain. Each may bring an item, such as what it wants
to add. Every step is one atomic operation of the dictionary, so that a signal handler or another thread may wake
waiters in between. All operations but `wake_all`, `throw_all` and iteration cost the same for any length.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["WaitQueue", "Waiter"]

T_contra = TypeVar("T_contra", contravariant=True)
T = TypeVar("T")


class Waiter(Protocol[T_contra]):
    """One who waits, until one of these returns True."""

    def resume(self, value: T_contra, /) -> bool: ...
    def throw(self, error: BaseException, /) -> bool: ...


class WaitQueue(Generic[T]):
    """Waiters for values of type T, first come, first served."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: OrderedDict[Waiter[T], Any] = OrderedDict()

    def join(self, waiter: Waiter[T], item: Any = None) -> None:
        """Add a waiter at the end."""
        self._entries[waiter] = item

    def put_first(self, waiter: Waiter[T]) -> None:
        """Let a waiter have the next turn; nothing happens if it is not here."""
        if waiter in self._entries:
            self._entries.move_to_end(waiter, last=False)

    def withdraw(self, waiter: Waiter[T]) -> None:
        """Remove a waiter, wherever it stands; nothing happens if it is not here."""
        self._entries.pop(waiter, None)

    def pop_first(self) -> tuple[Waiter[T], Any] | None:
        """Take out the first waiter, with its item; None if nobody waits. It may be one that waits no longer."""
        try:
            return self._entries.popitem(last=False)
        except KeyError:
            return None

    def wake_first(self, value: T) -> bool:
        """Resume the first who still waits. False if nobody does."""
        popitem = self._entries.popitem
        while self._entries:
            try:
                waiter, _ = popitem(last=False)
            except KeyError:  # emptied from a signal handler or another thread, in between
                return False
            if waiter.resume(value):
                return True
        return False

    def wake_all(self, value: T) -> int:
        """Resume all who wait at this moment, in order; returns how many."""
        woken = 0
        for waiter in self._take_all():
            woken += waiter.resume(value)
        return woken

    def throw_all(self, failure: Callable[[], BaseException]) -> int:
        """Fail all who wait at this moment, in order, each with an exception of its own; returns how many."""
        woken = 0
        for waiter in self._take_all():
            woken += waiter.throw(failure())
        return woken

    def _take_all(self) -> list[Waiter[T]]:
        waiters = []
        for _ in range(len(self._entries)):
            try:
                waiters.append(self._entries.popitem(last=False)[0])
            except KeyError:
                break
        return waiters

    def __len__(self) -> int:
        return len(self._entries)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __iter__(self) -> Iterator[Waiter[T]]:
        return iter(list(self._entries))
