"""A value that is computed when it is first needed, once, by one of those who need it.

States: Unforced -> Running(a promise of the outcome) -> Forced(the same promise, resolved), and from Running back to
Unforced when the fiber that runs it is cancelled and another is to run it anew. Belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any, Final, Generic, Literal, NoReturn, TypeVar, cast, overload

from domains.scheduler.awaitables import call
from domains.scheduler.cancel import protect
from domains.scheduler.context import Fiber, check, current_fiber, is_cancelled
from domains.scheduler.promise import Promise, Resolver

__all__ = ["Lazy", "WhenCancelled"]

T = TypeVar("T")

WhenCancelled = Literal["protect", "restart", "record"]


class _Restart:
    """What a run that was given up promises in place of a value."""


_RESTART: Final = _Restart()


class Lazy(Generic[T]):
    """`await lazy.force()` gives the value of `f()`, plain or `async`, which is called once.

    `cancel` says what happens when the fiber that runs f is cancelled: "protect", and f is finished first, for the
    others; "restart", and the next who waits runs it anew; "record", and everybody gets the Cancelled.
    """

    __slots__ = ("__weakref__", "_cancel", "_f", "_outcome", "_runner", "label")

    @overload
    def __init__(
        self,
        f: Callable[[], Awaitable[T]],
        cancel: WhenCancelled = "protect",
        *,
        label: str | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        f: Callable[[], T],
        cancel: WhenCancelled = "protect",
        *,
        label: str | None = None,
    ) -> None: ...
    def __init__(
        self,
        f: Callable[[], Any],
        cancel: WhenCancelled = "protect",
        *,
        label: str | None = None,
    ) -> None:
        if cancel not in ("protect", "restart", "record"):
            raise ValueError(f'cancel must be "protect", "restart" or "record", but is {cancel!r}')
        self.label = label
        self._cancel = cancel
        self._f: Callable[[], Any] | None = f
        self._outcome: Promise[T | _Restart] | None = None
        self._runner: Fiber | None = None

    def __repr__(self) -> str:
        name = "" if self.label is None else f" {self.label!r}"
        if self._outcome is None:
            return f"<lazy{name}, unforced>"
        return f"<lazy{name}, {'forced' if self._outcome.is_resolved else 'running'}>"

    @property
    def is_forced(self) -> bool:
        """Whether the outcome is there, value or failure."""
        return self._outcome is not None and self._outcome.is_resolved

    async def force(self) -> T:
        """The value; the first who asks runs f, the others wait for it. Raises what f raised, to everybody.

        Raises RuntimeError when f forces its own value. Cancelling one who waits leaves the others alone.
        """
        while True:
            check()
            if self._outcome is None:
                return await self._run()
            if self._runner is current_fiber():
                raise RuntimeError(f"{self!r} is forced by its own function: this would wait forever")
            value = await self._outcome
            if not isinstance(value, _Restart):
                return value

    async def _run(self) -> T:
        f = self._f
        assert f is not None
        resolver: Resolver[T | _Restart]
        self._outcome, resolver = Promise.create(self.label or "a lazy value")
        self._runner = current_fiber()
        try:
            with protect() if self._cancel == "protect" else nullcontext():
                value = await call(f)
        except BaseException as error:
            if self._cancel != "record" and isinstance(error, CancelledError) and _was_cancelled():
                self._outcome = None
                resolver.resolve(_RESTART)
            else:
                self._f = None
                resolver.fail(error)
            raise
        else:
            self._f = None
            resolver.resolve(value)
            return cast(T, value)
        finally:
            self._runner = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} travels only between domains: as a job's argument or result, or inside another one")


def _was_cancelled() -> bool:
    """Whether this fiber was cancelled, by a context or by a `task.cancel()`: not by f's own doing."""
    task = asyncio.current_task()
    return is_cancelled() or (task is not None and task.cancelling() > 0)
