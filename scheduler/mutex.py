"""Mutual exclusion between fibers, handed over in the order in which they came, and poisoned by a failed update.

States: Free -> Held(holder) -> Free | Held(next) | Poisoned(cause). Fibers wait only while it is held, and an unlock
hands it to the first of them directly, so that nobody gets in between. Poisoned is for good: what the mutex protects
may be broken. The holder is any hashable token; for the methods without one it is the running fiber. Belongs to the
loop's thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Any, NoReturn

from domains.errors import Poisoned
from domains.scheduler.cancel import protect
from domains.scheduler.context import Fiber, FiberTask, current_fiber
from domains.scheduler.running import here, running_task
from domains.scheduler.suspend import suspend
from domains.scheduler.waiters import Waiter, WaitQueue

__all__ = ["Mutex"]


class _Poison:
    """The state of a mutex whose critical section failed."""

    __slots__ = ("cause",)

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause


class Mutex:
    """One fiber at a time: `async with mutex.rw():` to change what it protects, `async with mutex.ro():` to read it.

    The label shows in errors and dumps.
    """

    __slots__ = ("__weakref__", "_ahead", "_calls", "_state", "_streak", "_waiters", "_word", "label")

    _ahead: Any  # this and the next three are for those that processes share, and unset in all others
    _calls: Any
    _streak: int
    _word: Any

    def __init__(self, label: str | None = None) -> None:
        self.label = label
        self._state: Hashable | _Poison | None = None  # None is free, anything else that is no _Poison the holder
        self._waiters: WaitQueue[None] | None = None  # None unless somebody waits, or has until now, or it is shared

    def __repr__(self) -> str:
        name = "" if self.label is None else f" {self.label!r}"
        state = self._state
        if state is None:
            return f"<mutex{name}, free>"
        if isinstance(state, _Poison):
            return f"<mutex{name}, poisoned by {state.cause!r}>"
        holder = f"fiber {state.name!r}" if isinstance(state, Fiber) else repr(state)
        return f"<mutex{name}, held by {holder}, {len(self._waiters or ())} waiting>"

    @property
    def is_locked(self) -> bool:
        """Whether somebody holds it."""
        return self._state is not None and not isinstance(self._state, _Poison)

    @property
    def is_poisoned(self) -> bool:
        return isinstance(self._state, _Poison)

    async def lock(self) -> None:
        """Hold the mutex from here on; waits while somebody holds it, behind those who wait already.

        Raises Poisoned, before or while it waits; RuntimeError in the fiber that holds it. A cancelled lock holds
        nothing.
        """
        fiber: Any = running_task(here.loop)
        if (
            self._state is None
            and self._waiters is None
            and type(fiber) is FiberTask
            and fiber.context.cancellation is None
        ):
            self._state = fiber
        else:
            await self._lock(current_fiber())

    async def _lock(self, fiber: Fiber) -> None:
        cancellation = fiber.context.cancellation
        if cancellation is not None:
            raise cancellation.tell(fiber)
        if self._state is fiber:
            raise RuntimeError(f"{self!r} is held by the very fiber that locks it: this would wait forever")
        if not self._try_lock(fiber):
            await suspend(lambda suspension: self._wait(suspension, fiber), "Mutex.lock", self)

    def try_lock(self) -> bool:
        """Hold the mutex if nobody does, without waiting; tells whether it did. Raises Poisoned."""
        return self._try_lock(current_fiber())

    def unlock(self) -> None:
        """Let go, and hand over to the first who waits.

        Raises RuntimeError in a fiber that does not hold it, and changes nothing; if nobody holds it, this is a
        sign of a broken protocol, and poisons it as well.
        """
        if self._waiters is None and self._state is running_task(here.loop) is not None:
            self._state = None
        else:
            self._unlock(current_fiber())

    def rw(self, *, protect: bool = False) -> _Reading:
        """`async with mutex.rw():` a section that may change things: an exception inside poisons the mutex.

        Being cancelled inside is such an exception; with `protect` the section is not cancelled, while waiting for
        the lock still is. Raises as `lock`.
        """
        section = _Writing() if not protect else _ProtectedWriting()
        section._mutex = self
        return section

    def ro(self) -> _Reading:
        """`async with mutex.ro():` a section that only reads: an exception inside just unlocks. Raises as `lock`."""
        section = _Reading()
        section._mutex = self
        return section

    def _is_mine(self) -> bool:
        """Whether the running fiber holds it."""
        return self._state == current_fiber()

    def _same_lock(self) -> Callable[[], Awaitable[None]]:
        """What locks it again in the way in which it is held now, for those who let go of it in between."""
        return self.lock

    # Steps that name the holder, for those who lock on behalf of another

    def _try_lock(self, holder: Hashable) -> bool:
        if self._state is None:
            self._state = holder
            return True
        if isinstance(self._state, _Poison):
            raise self._poisoned()
        return False

    def _wait(self, waiter: Waiter[None], holder: Hashable) -> Callable[[Any], object]:
        assert self.is_locked
        if self._waiters is None:
            self._waiters = WaitQueue()
        self._waiters.join(waiter, holder)
        return lambda waiter: self._withdraw(waiter)  # it may be shared by then, or not any more

    def _withdraw(self, waiter: Waiter[None]) -> None:
        if self._waiters is not None:
            self._waiters.withdraw(waiter)

    def _unlock(self, holder: Hashable) -> None:
        state = self._state
        if state == holder and state is not None:
            self._hand_over()
        elif state is None:
            error = RuntimeError(f"{self!r} was unlocked, but nobody had locked it")
            self._poison(error)
            raise error
        elif isinstance(state, _Poison):
            raise self._poisoned()
        else:
            raise RuntimeError(f"{self!r} can be unlocked only by its holder")

    def _hand_over(self) -> None:
        """Let the first who waits have it; it is free if nobody does."""
        while self._waiters:
            entry = self._waiters.pop_first()
            if entry is not None and entry[0].resume(None):
                self._state = entry[1]
                return
        self._waiters = None
        self._state = None

    def _poison(self, cause: BaseException) -> None:
        """What it protects may be broken: nobody gets in any more."""
        if not isinstance(self._state, _Poison):
            self._state = _Poison(cause)
            waiters, self._waiters = self._waiters, None
            if waiters is not None:
                waiters.throw_all(self._poisoned)

    def _poisoned(self) -> Poisoned:
        assert isinstance(self._state, _Poison)
        error = Poisoned(f"{self!r}: what it protects may be broken; make a new one with a sound state")
        error.__cause__ = self._state.cause
        return error

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} travels only between domains: as a job's argument or result, or inside another one")


class _Reading:
    """A critical section: an exception inside just unlocks. Entered once."""

    # No __init__: it would take as long as the lock.
    __slots__ = ("_mutex",)

    _mutex: Mutex

    def __aenter__(self) -> Awaitable[None]:
        return self._mutex.lock()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or self._mutex._is_mine():  # else somebody poisoned it, or unlocked it inside
            self._mutex.unlock()


class _Writing(_Reading):
    """A critical section: an exception inside poisons the mutex."""

    __slots__ = ()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._mutex.unlock()
        elif self._mutex._is_mine():
            self._mutex._poison(error)


class _ProtectedWriting(_Writing):
    """The same, and not cancelled from outside once it is entered."""

    __slots__ = ("_protection",)

    async def __aenter__(self) -> None:
        await self._mutex.lock()
        self._protection = protect()
        self._protection.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._protection.__exit__()
        await super().__aexit__(kind, error, traceback)
