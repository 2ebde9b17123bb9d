"""A promise of one value, and the resolver that keeps it.

States: Unresolved(waiters) -> Returned(value) | Raised(error), once. The step is one atomic operation, so that of
several threads that resolve exactly one does, and each other is told so. Awaiting, `peek` and `is_resolved` belong to
the loop's thread; resolving may be done from any thread, and wakes the waiters on theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

from domains.errors import AlreadyResolved
from domains.scheduler.context import check
from domains.scheduler.suspend import Suspension, suspend
from domains.scheduler.waiters import Waiter, WaitQueue

__all__ = ["Promise", "Raised", "Resolver", "Result", "Returned", "raised"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Returned(Generic[T_co]):
    """A promise was kept."""

    __slots__ = ("value",)
    __match_args__ = ("value",)

    def __init__(self, value: T_co) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return self.value == other.value if isinstance(other, Returned) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Returned(value={self.value!r})"


class Raised:
    """A promise failed; `traceback` is the error's as it was then, for it grows each time the error is raised."""

    __slots__ = ("error", "traceback")
    __match_args__ = ("error", "traceback")

    def __init__(self, error: BaseException, traceback: TracebackType | None) -> None:
        self.error = error
        self.traceback = traceback

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Raised):
            return NotImplemented
        return self.error == other.error and self.traceback is other.traceback

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Raised(error={self.error!r}, traceback={self.traceback!r})"


Result = Returned[T] | Raised


def raised(error: BaseException) -> Raised:
    """The outcome of a promise that fails with this now. Raises TypeError for what is no exception."""
    if not isinstance(error, BaseException):
        raise TypeError(f"a promise fails with an exception, not with {error!r}")
    return Raised(error, error.__traceback__)


class Promise(Generic[T]):
    """Will have a value, or a failure, once. Any number of fibers may await it, before or after, and get the same.

    `await promise` returns the value or raises the failure; it does not switch to another fiber if the promise is
    resolved already. Raises Cancelled in a cancelled context. Cancelling a waiter leaves the promise alone.
    """

    __slots__ = ("__weakref__", "_first", "_result", "_unresolved", "_waiters", "label", "was_seen")

    def __init__(self, label: str | None = None) -> None:
        self.label = label
        self.was_seen = False
        """Whether anybody has looked at the outcome."""
        self._result: Result[T] | None = None
        self._first: Waiter[None] | None = None  # most promises have one waiter, who needs no queue
        self._waiters: WaitQueue[None] | None = None
        self._unresolved = bytearray(1)  # whoever pops this resolves; no list, which garbage collection would walk

    @classmethod
    def create(cls, label: str | None = None) -> tuple[Promise[T], Resolver[T]]:
        """An unresolved promise and its resolver. The label shows in errors, dumps and traces."""
        promise: Promise[T] = cls(label)
        return promise, Resolver(promise)

    @classmethod
    def resolved(cls, value: T) -> Promise[T]:
        """A promise that has its value."""
        promise: Promise[T] = cls()
        promise._settle(Returned(value))
        return promise

    @classmethod
    def failed(cls, error: BaseException) -> Promise[T]:
        """A promise that has failed."""
        promise: Promise[T] = cls()
        promise._settle(raised(error))
        return promise

    def peek(self) -> Result[T] | None:
        """The outcome, as `Returned` or `Raised`, or None as long as there is none."""
        self.was_seen = True
        return self._result

    @property
    def is_resolved(self) -> bool:
        return self._result is not None

    def __await__(self) -> Generator[Any, Any, T]:
        self.was_seen = True
        if self._result is None:
            yield from suspend(self._wait, "Promise.await", self)
        else:
            check()
        result = self._result
        assert result is not None
        if type(result) is Returned:
            return result.value
        assert type(result) is Raised
        try:
            # Each awaiter raises the same exception: without this its traceback would grow each time.
            raise result.error.with_traceback(result.traceback)
        finally:
            del result, self  # the error's traceback holds this frame

    def when_resolved(self, waiter: Waiter[None]) -> Callable[[Waiter[None]], object]:
        """Resume this waiter with None once the promise is resolved, in turn with the fibers that await it.

        At once if it is already. Returns what withdraws the waiter.
        """
        self.was_seen = True
        return self._wait(waiter)

    def _wait(self, waiter: Waiter[None] | Suspension[None]) -> Callable[[Any], object]:
        waiters = self._waiters
        if waiters is not None:
            waiters.join(waiter)
        elif self._first is None:
            self._first = waiter
        else:
            waiters = self._waiters = WaitQueue()
            waiters.join(waiter)
        if self._result is not None:
            # It was resolved from another thread, perhaps before the waiter stood there.
            self._wake()
        return self._withdraw

    def _withdraw(self, waiter: Waiter[None]) -> None:
        if self._first is waiter:
            self._first = None
        elif self._waiters is not None:
            self._waiters.withdraw(waiter)

    def _wake(self) -> None:
        """Resume all who wait. May be done by two threads at once: a waiter is resumed once."""
        first, self._first = self._first, None
        if first is not None:
            first.resume(None)
        if self._waiters is not None:
            self._waiters.wake_all(None)

    def _settle(self, result: Result[T]) -> bool:
        try:
            self._unresolved.pop()
        except IndexError:
            return False
        self._result = result
        self._wake()
        return True

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} travels only between domains: as a job's argument or result, or inside another one")

    def __repr__(self) -> str:
        name = "" if self.label is None else f" {self.label!r}"
        result = self._result
        if result is None:
            return f"<promise{name}, unresolved>"
        if isinstance(result, Raised):
            return f"<promise{name}, failed with {result.error!r}>"
        return f"<promise{name}, resolved with {result.value!r:.60}>"


class Resolver(Generic[T]):
    """Resolves one promise, once. All its methods may be called from any thread."""

    __slots__ = ("__weakref__", "promise")

    def __init__(self, promise: Promise[T]) -> None:
        self.promise = promise

    def resolve(self, value: T) -> None:
        """Give the promise its value. Raises AlreadyResolved if it has an outcome."""
        if not self.promise._settle(Returned(value)):
            raise self._already()

    def fail(self, error: BaseException) -> None:
        """Let the promise fail. Raises AlreadyResolved if it has an outcome."""
        if not self.promise._settle(raised(error)):
            raise self._already()

    def try_resolve(self, value: T) -> bool:
        """Give the promise its value unless it has an outcome; tells whether it did."""
        return self.promise._settle(Returned(value))

    def try_fail(self, error: BaseException) -> bool:
        """Let the promise fail unless it has an outcome; tells whether it did."""
        return self.promise._settle(raised(error))

    def _already(self) -> AlreadyResolved:
        return AlreadyResolved(
            f"{self.promise!r} was resolved before; use try_resolve or try_fail where several may be first"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} travels only between domains: as a job's argument or result, or inside another one")

    def __repr__(self) -> str:
        return f"<resolver of {self.promise!r}>"
