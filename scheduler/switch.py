"""A switch: the block that fibers and resources belong to, and do not outlive.

States: Open -> Releasing -> Finished. Leaving `async with Switch()` waits for its fibers, then cancels the daemons and
waits for them, then runs the release hooks, last first. The first failure of the body or a fiber cancels everything
inside; in the end all failures that are not consequences of that are raised: one as itself, several as a group.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import functools
from asyncio import CancelledError
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import CoroutineType, TracebackType
from typing import Any, NoReturn, TypeVar, TypeVarTuple, cast, overload

from domains.errors import Cancelled
from domains.scheduler.awaitables import is_awaitable
from domains.scheduler.cancel_handle import CancelHandle
from domains.scheduler.context import Cancellation, Context, FiberTask, Work, check, current_fiber
from domains.scheduler.entering import enter
from domains.scheduler.promise import Promise, Raised, Resolver
from domains.scheduler.release import Hook, ReleaseHooks
from domains.scheduler.running import running_loop, running_task
from domains.scheduler.sequence import Sequence
from domains.scheduler.suspend import Suspension, suspend
from domains.scheduler.unseen import UnseenFailures

__all__ = ["Switch"]

_CONTEXT: Any = vars(BaseException)["__context__"]
"""BaseException's own: a user's class may refuse its attributes to be set, as a frozen dataclass does."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _State(enum.Enum):
    NEW = "not entered"
    OPEN = "open"
    RELEASING = "releasing"
    FINISHED = "finished"


_NEW, _OPEN = _State.NEW, _State.OPEN  # to look up an enum's member takes long


class Switch:
    """`async with Switch() as switch:` a block that ends when all that was started in it has ended.

    A `protected` switch is not cancelled from outside. All methods belong to the loop's thread, and those that do not
    wait may be called from a callback of the loop as well as from a fiber. Raises what fails inside; Cancelled, if it
    was cancelled from outside; nothing, if it was ended by `cancel`.
    """

    def __init__(self, name: str | None = None, *, protected: bool = False) -> None:
        self.name = name or "switch"
        self._protected = protected
        self._state = _State.NEW
        self._fibers = 0
        self._daemons: Context | None = None
        self._living_daemons = 0
        self._failures: list[BaseException] = []
        self._cut_short = False  # some of the code inside ended with Cancelled, as a consequence
        self._own: Cancellation | None = None
        self._hooks: ReleaseHooks | None = None
        self._unseen: UnseenFailures | None = None
        self._joining: Suspension[None] | None = None
        self._cancel_handle: CancelHandle | None = None

    def __repr__(self) -> str:
        return f"<switch {self.name!r}, {self._state.value}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} belongs to its domain: it cannot be sent to another one")

    # Entering and leaving

    async def __aenter__(self) -> Switch:
        if self._state is not _State.NEW:
            raise RuntimeError(f"{self!r} was entered before: make a new one for each `async with`")
        fiber = current_fiber()
        if not self._protected and (cancellation := fiber.context.cancellation) is not None:
            raise cancellation.tell(fiber)
        self._loop = asyncio.get_running_loop()
        self._owner = fiber
        self._foreign_cancels = fiber.foreign_cancels
        self._context = Context(fiber.context, f"switch {self.name!r}", protected=self._protected, owner=self)
        fiber.enter(self._context)
        if self._protected:
            self._kept_out_outside = fiber.enter_protected()
        self._state = _State.OPEN
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        fiber = self._owner
        if fiber.context is not self._context or current_fiber() is not fiber:
            misuse = RuntimeError(
                f"{self!r} must be left in the fiber that entered it, after all that was entered inside it"
            )
            if self._state is not _State.FINISHED and running_loop() is self._loop:
                self._cancel(misuse)  # nobody waits for its fibers: they should at least end
            raise misuse
        if error is not None:
            self._failed(error)
        while self._fibers or self._living_daemons:
            if not self._fibers and self._daemons is not None:
                self._daemons.cancel(None)
            try:
                await suspend(self._join, "Switch.join", self, protected=True)
            except CancelledError as cancelled:  # somebody else's `task.cancel()`
                self._failed(cancelled)
        self._state = _State.RELEASING
        if self._hooks is not None:
            await self._hooks.run(self._add_failure)
        self._state = _State.FINISHED
        if self._protected:
            fiber.leave_protected(self._kept_out_outside)
        fiber.leave(self._context)
        if self._unseen is not None:
            self._unseen.log(self)
            self._unseen = None
        try:
            return self._conclude(error)
        finally:
            # What is raised holds this frame, and what was the reason is held by much else: no cycles.
            del error, traceback
            self._forget()

    def _forget(self) -> None:
        self._own = None
        self._daemons = None
        self._context.owner = None
        self._context.children.clear()
        if self._context.cancellation is not None:
            self._context.cancellation = Cancellation(None)

    def _conclude(self, error: BaseException | None) -> bool:
        """Raise what the switch came to; True if that is nothing, False if it is what the body raised."""
        failures = self._failures
        if len(failures) > 1:
            failures = [failure for failure in failures if not isinstance(failure, CancelledError)] or failures[:1]
        self._failures = []
        if not failures:
            if not self._cut_short:
                return True
            owner, cancellation = self._owner, self._context.cancellation
            assert cancellation is not None
            if owner.foreign_cancels > self._foreign_cancels:
                # Somebody's `task.cancel()` came as well, must not be swallowed, and is looked for by its exact class.
                if type(error) is CancelledError:
                    return False
                raise CancelledError from error
            if cancellation is self._own:
                return True
            if isinstance(error, CancelledError):
                return False
            raise cancellation.tell(owner)
        if len(failures) == 1:
            failure = failures[0]
            if failure is error:
                return False
        else:
            failure = BaseExceptionGroup(f"several failures in switch {self.name!r}", failures)
        # Raised here, it would otherwise claim to have happened while the body's exception was handled.
        context = _CONTEXT.__get__(failure)
        try:
            raise failure
        finally:
            _CONTEXT.__set__(failure, context)
            del failure, failures, error

    def _join(self, suspension: Suspension[None]) -> Callable[[Any], None]:
        assert self._joining is None
        self._joining = suspension
        return self._stop_joining

    def _stop_joining(self, _: Any = None) -> None:
        self._joining = None

    # Forking

    @overload
    def fork(
        self,
        f: Callable[[*Ts], Awaitable[object]],
        *args: *Ts,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> None: ...
    @overload
    def fork(
        self,
        f: Callable[[*Ts], object],
        *args: *Ts,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> None: ...
    def fork(  # type: ignore[misc]  # mypy does not match Any with a TypeVarTuple
        self,
        f: Callable[..., object],
        *args: Any,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> None:
        """Run `f(*args)`, plain or `async`, in a new fiber, after those that can run now. Its failure fails the switch.

        `context` are its context variables, by default a copy of the caller's. On a switch that was cancelled nothing
        runs; if that came from outside, the switch raises Cancelled. Raises RuntimeError on one that has finished.
        """
        self.check_open()
        if self._context.cancellation is None:
            self._start(self._run(f, args), self._context, name or _name_of(f, "fiber"), context)
        else:
            self._cut_short = True  # as if it had been cancelled before its first turn

    def fork_within(
        self, f: Callable[..., object], *args: Any, name: str, context: contextvars.Context | None = None
    ) -> Context:
        """As `fork`, in a cancellation context of the fiber's own, which is returned: `cancel` that to end it alone.

        It does begin, even if it was cancelled before; f must be `async`.
        """
        self.check_open()
        within = Context(self._context, name)
        try:
            self._start(self._run_within(f, args), within, name, context)
        except BaseException:
            if not within.fibers:
                del self._context.children[within]
            raise
        return within

    async def _run_within(self, f: Callable[..., Any], args: tuple[Any, ...]) -> None:
        fiber: Any = running_task(self._loop)
        context = fiber.context
        try:
            early, fiber.early_cancel = fiber.early_cancel, None
            if isinstance(early, CancelledError):
                raise early
            await f(*args)
        except BaseException as error:
            if not _is_consequence(error, context.cancellation):
                self._failed(error)
        finally:
            self._context.children.pop(context, None)
            self._fibers -= 1
            self._ended(fiber)

    async def _run(self, f: Callable[..., Any], args: tuple[Any, ...]) -> None:
        fiber = cast(FiberTask, running_task(self._loop))
        try:
            self._begin(fiber)
            result = f(*args)
            del f, args  # they are f's own now: it may let go of them
            if type(result) is CoroutineType or is_awaitable(result):
                await result
        except BaseException as error:
            self._failed(error)
        finally:
            self._fibers -= 1
            self._ended(fiber)

    def fork_promise(
        self,
        f: Callable[..., Any],
        *args: Any,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> Promise[Any]:
        """Run `f(*args)` in a new fiber, and promise its result. Its failure goes to the promise alone.

        A failure that nobody has looked at is logged when the switch ends. On a cancelled switch nothing runs, and the
        promise fails with Cancelled.
        """
        self.check_open()
        name = name or _name_of(f, "fiber")
        promise: Promise[Any] = Promise(name)
        if self._context.cancellation is None:
            self._start(self._run_for(Resolver(promise), f, args), self._context, name, context)
        else:
            self._cut_short = True
            Resolver(promise).fail(Cancelled(self._context.cancellation.reason))
        return promise

    async def _run_for(self, resolver: Resolver[Any], f: Callable[..., Any], args: tuple[Any, ...]) -> None:
        fiber = cast(FiberTask, running_task(self._loop))
        try:
            self._begin(fiber)
            result = f(*args)
            del f, args
            if type(result) is CoroutineType or is_awaitable(result):
                result = await result
        except BaseException as error:
            resolver.try_fail(error)
            self._promise_failed(resolver.promise, error)
            del resolver  # its promise holds the error, whose traceback holds this frame
        else:
            resolver.try_resolve(result)
        finally:
            self._fibers -= 1
            self._ended(fiber)

    def adopt(self, work: Work) -> None:
        """Let work that goes on elsewhere belong here, as a fiber of `fork_promise` would: cheaper by that fiber.

        The switch waits for it, and cancels it when it is cancelled itself, until `disown` is called.
        """
        if self._state is not _OPEN:
            self.check_open()
        self._fibers += 1
        self._context.adopted[work] = None
        if self._context.cancellation is not None:
            work.cancel(self._context.cancellation.reason)

    def disown(self, work: Work, promise: Promise[Any]) -> None:
        """The work has ended, and its promise has the outcome."""
        del self._context.adopted[work]
        self._fibers -= 1
        result = promise._result
        if type(result) is Raised:
            self._promise_failed(promise, result.error)
        self._tell_joining()

    def _promise_failed(self, promise: Promise[Any], error: BaseException) -> None:
        if not isinstance(error, CancelledError):
            self.remember_failed(promise)
        elif self._context.cancellation is not None:
            self._cut_short = True

    def remember_failed(self, promise: Promise[Any]) -> None:
        """Log this failure when the switch ends, unless somebody has looked at it by then."""
        if self._unseen is None:
            self._unseen = UnseenFailures()
        self._unseen.add(promise)

    def fork_daemon(
        self,
        f: Callable[..., object],
        *args: Any,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> None:
        """Run `f(*args)` in a new fiber that is cancelled once all others have ended. Its failure fails the switch."""
        self.check_open()
        if self._context.cancellation is None:
            self._start_daemon(f, args, name or _name_of(f, "daemon"), context, _nothing)

    def _fork_sequence(self, produce: Callable[[], Awaitable[None]], name: str, ended: Callable[[], None]) -> None:
        """A daemon whose end is told, even if it never began. Raises Cancelled on a cancelled switch."""
        self.check_open()
        self.check()
        self._start_daemon(produce, (), name, None, ended)

    def _start_daemon(
        self,
        f: Callable[..., object],
        args: tuple[Any, ...],
        name: str,
        variables: contextvars.Context | None,
        ended: Callable[[], None],
    ) -> None:
        if self._daemons is None:
            self._daemons = Context(self._context, f"daemons of switch {self.name!r}")
        self._start(self._run_daemon(f, args, ended), self._daemons, name, variables)

    async def _run_daemon(self, f: Callable[..., Any], args: tuple[Any, ...], ended: Callable[[], None]) -> None:
        fiber = cast(FiberTask, running_task(self._loop))
        try:
            self._begin(fiber)
            result = f(*args)
            del f, args
            if type(result) is CoroutineType or is_awaitable(result):
                await result
        except BaseException as error:
            assert self._daemons is not None
            if not _is_consequence(error, self._daemons.cancellation):
                self._failed(error)
        finally:
            self._living_daemons -= 1
            ended()
            self._ended(fiber)

    def _start(
        self,
        coroutine: Coroutine[Any, Any, None],
        context: Context,
        name: str,
        variables: contextvars.Context | None,
    ) -> None:
        """Begin a fiber, counted before: a signal handler may raise as soon as it has begun, and it ends even so."""
        is_daemon = context is self._daemons
        if is_daemon:
            self._living_daemons += 1
        else:
            self._fibers += 1
        try:
            fiber = FiberTask(coroutine, loop=self._loop, name=name, context=variables)
        except BaseException:  # such as a RecursionError
            coroutine.close()  # for its task may have been put into the run queue already
            if is_daemon:
                self._living_daemons -= 1
            else:
                self._fibers -= 1
            raise
        fiber.context = context
        fiber.suspension = None
        fiber.told = None
        fiber.delivered = 0
        fiber.kept_out = 0
        fiber.early_cancel = True
        context.fibers[fiber] = None

    def _begin(self, fiber: FiberTask) -> None:
        """The fiber runs for the first time: not at all if it was cancelled before."""
        early, fiber.early_cancel = fiber.early_cancel, None
        cancellation = fiber.context.cancellation
        if cancellation is not None:
            raise cancellation.tell(fiber)
        if isinstance(early, CancelledError):
            raise early

    def _ended(self, fiber: FiberTask) -> None:
        """The fiber is about to end: everybody inside hears before anything else runs."""
        context = fiber.context
        del context.fibers[fiber]
        self._tell_joining()

    def _tell_joining(self) -> None:
        joining = self._joining
        if joining is not None and not self._fibers:
            self._joining = None
            joining.resume(None)

    def _failed(self, error: BaseException) -> None:
        """The body or a fiber ended with this: a consequence of the cancellation, or a failure."""
        if _is_consequence(error, self._context.cancellation):
            self._cut_short = True
        else:
            self._add_failure(error)
            self._cancel(error)

    def _add_failure(self, error: BaseException) -> None:
        if not any(error is failure for failure in self._failures):
            self._failures.append(error)

    def _cancel(self, reason: BaseException | None) -> None:
        cancellation = self._context.cancel(reason)
        if cancellation is not None:
            self._own = cancellation

    def call_soon(self, f: Callable[[], object]) -> None:
        """Call f on the switch's loop, from any thread. Raises RuntimeError if that is closed."""
        self._loop.call_soon_threadsafe(f)

    def check_open(self) -> None:
        """Raise RuntimeError unless something can be started in it, here and now."""
        if self._state is not _OPEN:
            raise RuntimeError(f"{self!r} cannot start anything: fork inside its `async with` block")
        if running_loop() is not self._loop:
            raise RuntimeError(f"{self!r} belongs to another event loop or thread: fork only where it was entered")

    def fork_seq(self, f: Callable[[Callable[[T], Awaitable[None]]], Awaitable[object]]) -> AsyncIterator[T]:
        """An iterator over what `f(yield_)` hands to `await yield_(item)`; f runs only as far as items are taken.

        f's exception is raised where the items are taken. Ending the switch, or dropping the iterator, cancels f.
        Taking two items at once is a RuntimeError.
        """
        self.check_open()
        return Sequence(self, f)

    # Resources

    def on_release(self, f: Callable[..., Any], *args: Any) -> Hook:
        """Call `f(*args)`, plain or `async`, when the switch ends, protected from cancellation; last come, first run.

        What it raises joins the switch's failures. On a switch that has finished f is called at once, and RuntimeError
        raised; an async f then runs in a task of its own.
        """
        release = functools.partial(f, *args) if args else f
        if self._state is _State.FINISHED or self._state is _State.NEW:
            result = release()
            if is_awaitable(result):
                asyncio.ensure_future(_finish(result))  # noqa: RUF006 - nobody is left to wait for it
            raise RuntimeError(f"{self!r} cannot keep a resource: it was released at once")
        if self._hooks is None:
            self._hooks = ReleaseHooks()
        return self._hooks.add(release)

    @overload
    async def enter(self, manager: AbstractAsyncContextManager[T, Any]) -> T: ...
    @overload
    async def enter(self, manager: AbstractContextManager[T, Any]) -> T: ...
    async def enter(self, manager: Any) -> Any:
        """Enter a context manager, async or not, and leave it when the switch ends; returns what it gives.

        On leaving it is told the first failure, or Cancelled if the switch was cut short; it cannot suppress that.
        Raises RuntimeError, and leaves it at once, if the block that it begins has a context of its own, as that of a
        switch, a `timeout` or a `Supervisor` does: such blocks are left in their order.
        """
        self.check_open()
        check()
        return await enter(self, manager)

    # Ending

    @property
    def cancel_handle(self) -> CancelHandle:
        """What cancels this switch, also from other domains, which a switch itself cannot be handed to."""
        if self._cancel_handle is None:
            self._cancel_handle = CancelHandle(self)
        return self._cancel_handle

    def cancel(self) -> None:
        """End everything inside, quietly: nothing is raised outside, unless something else fails."""
        self._check_entered()
        self._cancel(None)

    def fail(self, error: BaseException) -> None:
        """End everything inside, and raise this outside."""
        if not isinstance(error, BaseException):
            raise TypeError(f"a switch fails with an exception, not with {error!r}")
        self._check_entered()
        if self._state is _State.FINISHED:
            raise RuntimeError(f"{self!r} can fail no more: it has finished") from error
        self._add_failure(error)
        self._cancel(error)

    def interrupt(self, reason: BaseException) -> None:
        """Cancel everything inside as if it came from outside: Cancelled, with this reason, is raised outside."""
        if self._state is not _State.NEW:
            self._context.cancel(reason)

    def check(self) -> None:
        """Raise Cancelled if the switch was cancelled or has failed."""
        self._check_entered()
        if self._context.cancellation is not None:
            raise Cancelled(self._context.cancellation.reason)

    @property
    def is_cancelled(self) -> bool:
        """Whether `check` would raise Cancelled, from wherever it is asked."""
        return self._state is not _NEW and self._context.cancellation is not None

    @property
    def error(self) -> BaseException | None:
        """The first failure so far."""
        return self._failures[0] if self._failures else None

    def comes_to(self) -> BaseException | None:
        """The first failure so far, or else Cancelled if some of what is inside was cut short."""
        if not self._failures and self._cut_short and self._context.cancellation is not None:
            return Cancelled(self._context.cancellation.reason)
        return self.error

    def _check_entered(self) -> None:
        if self._state is _State.NEW:
            raise RuntimeError(f"{self!r}: use it inside its `async with` block")
        if self._state is not _State.FINISHED and running_loop() is not self._loop:
            raise RuntimeError(f"{self!r} belongs to another event loop or thread: use it only where it was entered")


def _is_consequence(error: BaseException, cancellation: Cancellation | None) -> bool:
    """Whether this error is the end of a fiber that its switch's cancellation asks for.

    Whatever the `Cancelled` is of, such as a promise whose fiber was cancelled as well, and even if somebody's
    `task.cancel()` came first: that asks for the same.
    """
    return cancellation is not None and isinstance(error, CancelledError)


def _nothing() -> None:
    """Where nobody wants to hear of the end."""


async def _finish(awaitable: Awaitable[object]) -> None:
    await awaitable


def _name_of(f: object, otherwise: str) -> str:
    name = getattr(f, "__name__", None)
    return name if type(name) is str else otherwise
