"""The one primitive under all others: a fiber waits, and either its wait is completed or it is cancelled.

A `Suspension` is one wait of one fiber. States: Waiting -> Completed | Cancelled. Both compete for one transition and
the first wins: a wait that was completed returns its result even if it is cancelled before the fiber runs again, and
one that was cancelled has been withdrawn before anything else runs. The states are those of an asyncio future.
"""

from __future__ import annotations

import asyncio
import types
from asyncio import CancelledError, InvalidStateError
from collections.abc import Callable, Generator
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from domains.scheduler.context import Cancellation, Fiber, fiber_on
from domains.scheduler.running import running_loop

if TYPE_CHECKING:
    from typing import AwaitableGenerator

__all__ = ["Suspension", "suspend"]

T = TypeVar("T")


class Suspension(Generic[T]):
    """One wait. `operation` and `target` say what for, `since` when it began, in seconds of the monotonic clock."""

    __slots__ = ("_future", "_withdraw", "fiber", "is_protected", "operation", "since", "target")

    def __init__(
        self, fiber: Fiber, future: asyncio.Future[T], operation: str, target: object, is_protected: bool
    ) -> None:
        self.fiber = fiber
        self.operation = operation
        self.target = target
        self.is_protected = is_protected
        self.since = monotonic()
        self._future = future
        self._withdraw: Callable[[Suspension[T]], object] | None = None

    def resume(self, value: T) -> bool:
        """Complete the wait with a value. True if this did it; False if it was completed or cancelled before.

        May be called from any thread; from another one than the loop's, True means that it was still waiting.
        """
        future = self._future
        if future.done():
            return False
        loop = future.get_loop()
        if running_loop() is not loop:
            return _call_elsewhere(loop, self.resume, value)
        try:
            future.set_result(value)
        except InvalidStateError:  # a signal handler, which may broadcast, came first
            return False
        return True

    def throw(self, error: BaseException) -> bool:
        """Complete the wait with a failure; as `resume` otherwise."""
        future = self._future
        if future.done():
            return False
        loop = future.get_loop()
        if running_loop() is not loop:
            return _call_elsewhere(loop, self.throw, error)
        try:
            future.set_exception(error)
        except InvalidStateError:
            return False
        return True

    @property
    def is_waiting(self) -> bool:
        return not self._future.done()

    @property
    def is_cancellable(self) -> bool:
        """Whether a cancelled context ends this wait: it waits still, and is not protected."""
        return not self.is_protected and not self._future.done()

    def cancel(self, cancellation: Cancellation) -> None:
        """Its fiber's context was cancelled: withdraw it, and let the fiber know."""
        future = self._future
        if not future.done():
            if self._withdraw is not None:
                self._withdraw(self)
            told = self.fiber.told
            try:
                future.set_exception(cancellation.tell(self.fiber))
            except InvalidStateError:  # a signal handler, which may broadcast, came first
                self.fiber.told = told
                self.fiber.tell_soon()
        else:  # or it came while another wait was cancelled
            self.fiber.tell_soon()

    def abandon(self) -> None:
        """Its fiber was destroyed, or thrown something into: withdraw it, if it waits still."""
        future = self._future
        if not future.done():
            if self._withdraw is not None:
                self._withdraw(self)
            if not future.get_loop().is_closed():
                future.cancel()

    def is_overtaken_by(self, error: CancelledError) -> bool:
        """Whether this error, which came instead of the outcome, is no part of it, and the outcome comes first."""
        future = self._future
        if future.cancelled():  # by a foreign `task.cancel()`, while it waited
            if self._withdraw is not None:
                self._withdraw(self)
            return False
        if not future.done():
            self.abandon()
            return False
        if future.exception() is error:
            return False
        self.fiber.cancel_again(error)
        return True


def _call_elsewhere(loop: asyncio.AbstractEventLoop, complete: Callable[[T], bool], outcome: T) -> bool:
    try:
        loop.call_soon_threadsafe(complete, outcome)
    except RuntimeError:  # it is closed: nobody waits there any more
        return False
    return True


def suspend(
    begin: Callable[[Suspension[T]], Callable[[Suspension[T]], object] | None],
    operation: str,
    target: object = None,
    *,
    protected: bool = False,
) -> AwaitableGenerator[Any, Any, T, Any]:
    """Wait until the suspension that is handed to `begin` is resumed, and return the value: `await suspend(...)`.

    `begin(suspension)` is called at once. It registers the suspension where somebody will resume it, or resumes it
    itself, and then there is no switch to another fiber. What it returns is called with the suspension, once, if the
    wait is cancelled: it must undo the registration, and neither wait nor raise.

    Raises Cancelled, before it calls `begin`, in a cancelled context. A `protected` wait is not ended by the
    cancellation of its context; the `task.cancel()` of somebody else still ends it.
    """
    loop = asyncio.get_running_loop()
    fiber = fiber_on(loop)
    if not protected:
        cancellation = fiber.context.cancellation
        if cancellation is not None:
            raise cancellation.tell(fiber)
    suspension: Suspension[T] = Suspension(fiber, loop.create_future(), operation, target, protected)
    suspension._withdraw = begin(suspension)
    return _wait(suspension)


@types.coroutine
def _wait(suspension: Suspension[T]) -> Generator[Any, Any, T]:
    """The part of `suspend` that lasts: its frame is kept for as long as the fiber waits, and so it is small."""
    suspension.fiber.suspension = suspension
    try:
        return (yield from suspension._future)
    except CancelledError as error:
        if suspension.is_overtaken_by(error):
            return suspension._future.result()
        raise
    except BaseException:
        suspension.abandon()
        raise
    finally:
        suspension.fiber.suspension = None
        if suspension.is_protected:
            suspension.fiber.tell_soon()
        # What is raised here holds this frame: a frame that held the future, which holds what is raised, would make
        # a cycle of each failed wait, and of many cancelled at once a long stop for the garbage collector.
        del suspension
