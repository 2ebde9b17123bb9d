"""Scopes: blocks of code in one fiber with a cancellation context of their own.

`protect` keeps cancellation from outside out; `timeout` and `move_on_after` cancel what is inside them at a deadline;
a `CancelScope` is cancelled by hand. A scope answers only for its own cancellation: whatever else comes through it
goes on outwards. Scopes are left in the fiber that entered them, in the reverse order; anything else raises
RuntimeError.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from types import TracebackType

from domains.scheduler.context import Cancellation, Context, Fiber, check, current_fiber, is_cancelled
from domains.scheduler.reals import as_float
from domains.scheduler.running import running_loop
from domains.scheduler.timers import Timer, set_timer

__all__ = [
    "CancelScope",
    "Context",
    "check",
    "current_fiber",
    "is_cancelled",
    "move_on_after",
    "protect",
    "timeout",
    "to_the_end",
]


class _Scope:
    """Enters a context of its own in the running fiber, and leaves it. Used once."""

    __slots__ = ("_context", "_fiber")

    _label = "scope"
    _protected = False

    def __init__(self) -> None:
        self._context: Context | None = None
        self._fiber: Fiber | None = None

    def _enter(self) -> Fiber:
        if self._context is not None:
            raise RuntimeError(f"this {self._label} was entered before: make a new one for each `with`")
        fiber = current_fiber()
        self._fiber = fiber
        self._context = Context(fiber.context, self._label, protected=self._protected)
        fiber.enter(self._context)
        return fiber

    def _leave(self) -> Context:
        context, fiber = self._context, self._fiber
        assert context is not None
        assert fiber is not None
        if fiber.context is not context or current_fiber() is not fiber:
            raise RuntimeError(
                f"a {self._label} must be left in the fiber that entered it, after all that was entered inside it; "
                f"fiber {fiber.name!r} is in {fiber.context.label!r}"
            )
        fiber.leave(context)
        return context


class protect(_Scope):
    """`with protect():` no cancellation from outside arrives inside.

    On leaving nothing is raised; the next operation of ours, or `check`, does that. What is cancelled inside it (a
    switch, a timeout) works as ever, and somebody's `task.cancel()` is not kept out.
    """

    __slots__ = ("_kept_out_outside",)

    _label = "protect"
    _protected = True

    def __enter__(self) -> None:
        self._kept_out_outside = self._enter().enter_protected()

    def __exit__(self, *_: object) -> None:
        fiber = self._fiber
        assert fiber is not None
        if fiber.context is self._context:
            fiber.leave_protected(self._kept_out_outside)
        self._leave()


async def to_the_end(wait: Callable[[], Awaitable[object]]) -> None:
    """Wait, whatever cancellations come meanwhile; a `task.cancel()` of somebody else is raised afterwards.

    After such a one `wait` is called again.
    """
    cancelled: CancelledError | None = None
    try:
        while True:
            try:
                with protect():
                    await wait()
                break
            except CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
    finally:
        del cancelled  # whose traceback holds this frame


class CancelScope(_Scope):
    """`with CancelScope() as scope:` a block that `scope.cancel()` ends, quietly.

    `cancelled` is True once the block was cut short by that. If the block ends before it notices, it was not.
    """

    __slots__ = ("_asked", "_before", "_cancellation", "_loop", "_timer", "cancelled")

    _label = "cancel scope"
    _loop: asyncio.AbstractEventLoop
    """That it was entered on: the task that did may be gone, without having left."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled = False
        self._asked: BaseException | None = None
        self._cancellation: Cancellation | None = None
        self._timer: Timer | None = None
        self._before = 0

    def cancel(self, reason: BaseException | None = None) -> None:
        """Cancel what is inside, or will be. Has no effect once the block has ended, or a second time.

        Raises RuntimeError in another thread than that of the block's loop.
        """
        if self._context is None:
            if self._asked is None:
                self._asked = reason or CancelledError("the scope was cancelled before it was entered")
        elif self._fiber is not None and self._cancellation is None:
            if running_loop() is not self._loop:
                raise RuntimeError(f"this {self._label} belongs to another event loop or thread: cancel it only there")
            self._cancellation = self._context.cancel(reason)

    def __enter__(self) -> CancelScope:
        fiber = self._enter()
        self._loop = asyncio.get_running_loop()
        self._before = fiber.foreign_cancels
        if self._asked is not None:
            self.cancel(self._asked)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._timer is not None:
            self._timer.cancel()
        fiber = self._fiber
        assert fiber is not None
        self._leave()
        self._fiber = None
        if self._cancellation is None or not isinstance(error, CancelledError):
            return False
        if fiber.foreign_cancels > self._before:
            # Somebody else's `task.cancel()` came as well, and is looked for by its exact class.
            if type(error) is CancelledError:
                return False
            raise CancelledError from error
        self.cancelled = True
        return self._conclude(error)

    def _conclude(self, error: CancelledError) -> bool:
        """The block was cut short by this scope: True to go on after it, or raise what it means."""
        return True


class move_on_after(CancelScope):
    """`with move_on_after(seconds) as scope:` end the block at the deadline, quietly; `scope.cancelled` tells.

    `seconds` may be None or infinite: no limit. `what` is said to have taken longer. Raises ValueError for a negative
    number or NaN, and TypeError for what is no real number.
    """

    __slots__ = ("_expiry", "_limit", "_seconds", "_what")

    _label = "move_on_after"

    def __init__(self, seconds: float | None, *, what: str = "it") -> None:
        super().__init__()
        self._limit = math.inf if seconds is None else as_float(seconds)
        if not self._limit >= 0:  # NaN fails this as well
            raise ValueError(f"seconds must be None or at least 0, but is {seconds!r}")
        self._seconds = seconds
        self._what = what
        self._expiry: TimeoutError | None = None

    def __enter__(self) -> move_on_after:
        super().__enter__()
        try:
            if self._limit == 0:
                self._expire(None)
            elif self._limit != math.inf:
                deadline = asyncio.get_running_loop().time() + self._limit
                self._timer = set_timer(deadline, self._expire, None)
        except BaseException:  # nobody will leave what was not entered, and all around it would wait for that
            self.__exit__(None, None, None)
            raise
        return self

    def _expire(self, _: None) -> None:
        self._expiry = TimeoutError(f"{self._what} took longer than {self._seconds} s")
        self.cancel(self._expiry)


class timeout(move_on_after):
    """`with timeout(seconds):` cancel the block at the deadline and raise TimeoutError.

    Only for its own deadline: a TimeoutError from inside or from an outer scope passes as it is. Of nested timeouts the
    one whose deadline came first raises. `seconds` may be None: no limit. A limit of 0 raises at the first operation.
    Its `cancel()` ends the block quietly.
    """

    __slots__ = ()

    _label = "timeout"

    def _conclude(self, error: CancelledError) -> bool:
        assert self._cancellation is not None
        expiry = self._expiry
        if expiry is None or self._cancellation.reason is not expiry:
            return True
        # A new one: the reason itself would make a cycle with its cause, whose reason it is.
        raise TimeoutError(*expiry.args) from error
