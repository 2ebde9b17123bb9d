"""Fibers and the tree of cancellation contexts that they live in.

A fiber is one asyncio task: one of ours (`FiberTask`), or any other task that calls an operation of ours, which then
is the only fiber of a context of its own. Each fiber has one innermost context. Cancelling a context marks the whole
subtree under it at once, except what is protected, and tells its fibers:

- one that waits in an operation of ours is withdrawn from it at once, in the order in which they began to wait;
- any other learns by the next operation of ours that it begins; if instead it comes to wait in foreign asyncio code,
  that is interrupted by `task.cancel()`, once for each cancellation. Such cancels are counted and taken back
  (`task.uncancel()`) when the fiber leaves for a context that is not cancelled, so that asyncio's own timeouts and
  task groups keep their accounts.

Everything here belongs to the loop's thread, and nothing waits.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from asyncio import CancelledError
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

from domains.errors import Cancelled
from domains.scheduler.running import here, remember, running_loop, running_task

if TYPE_CHECKING:
    from domains.scheduler.suspend import Suspension

__all__ = [
    "Cancellation",
    "Context",
    "Fiber",
    "FiberTask",
    "Work",
    "check",
    "current_fiber",
    "fiber_on",
    "is_cancelled",
    "root_contexts",
]


class Work(Protocol):
    """Something that goes on elsewhere, without a fiber here, and belongs to a context."""

    def cancel(self, reason: BaseException | None, /) -> None:
        """End soon; called once, must not wait or raise."""


class Cancellation:
    """One act of cancelling, shared by all contexts that it reached; `reason` is the exception that began it."""

    __slots__ = ("reason",)

    def __init__(self, reason: BaseException | None) -> None:
        self.reason = reason

    def tell(self, fiber: Fiber) -> Cancelled:
        """The exception to raise in this fiber, which from now on knows."""
        fiber.told = self
        return Cancelled(self.reason)


class Fiber:
    """What the scheduler knows about one task."""

    context: Context
    """The innermost cancellation context."""
    suspension: Suspension[Any] | None
    """The operation of ours that it waits in, until it runs again."""
    told: Cancellation | None
    """The last cancellation that it has heard of."""
    delivered: int
    """How many `task.cancel()` of ours stand to be taken back."""
    kept_out: int
    """How many of these came before the innermost protected block that it is in, and stand until that is left."""

    def task(self) -> asyncio.Task[Any]:
        """The asyncio task that runs it."""
        task = self.living_task()
        assert task is not None, "a fiber is used only while its task lives"
        return task

    def living_task(self) -> asyncio.Task[Any] | None:
        """The same, or None if it was collected as garbage: perhaps by another thread, just now."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return self.task().get_name()

    @property
    def foreign_cancels(self) -> int:
        """How many `task.cancel()` of somebody else stand, without those that are yet to be raised again."""
        standing = self.task().cancelling() - self.delivered
        return max(0, standing - _postponed.get(self, 0)) if _postponed else standing

    def cancel_again(self, error: CancelledError) -> None:
        """Somebody's `task.cancel()` came when an operation had completed, which goes first: raise it after that.

        At the next wait; unless by then it has been taken back, as by an `asyncio.timeout` that was left.
        """
        task = self.task()
        _postponed[self] = _postponed.get(self, 0) + 1
        standing = task.cancelling() - self.delivered
        asyncio.get_running_loop().call_soon(_cancel_again, self, task, standing, error.args[:1])

    def enter(self, context: Context) -> None:
        """Move to a context directly below."""
        assert context.parent is self.context
        context.told_outside = self.told
        del self.context.fibers[self]
        self.context = context
        context.fibers[self] = None

    def leave(self, context: Context) -> None:
        """Move from a context, which ends here, back to its parent."""
        parent = context.parent
        assert parent is not None
        if self.told is not None and self.told is context.cancellation is not parent.cancellation:
            self.told = context.told_outside
        del context.fibers[self]
        parent.children.pop(context, None)
        self.context = parent
        parent.fibers[self] = None
        if parent.cancellation is None:
            if self.delivered > self.kept_out:
                self.take_back_delivered()
        elif parent.cancellation is not self.told:
            asyncio.get_running_loop().call_soon(_tell_in_foreign_code, self, True)

    def take_back_delivered(self) -> None:
        """Nothing here is cancelled any more: settle the account of asyncio's cancellation requests."""
        task = self.task()
        while self.delivered > self.kept_out:
            self.delivered -= 1
            task.uncancel()

    def enter_protected(self) -> int:
        """Begin an account of a protected block's own; returns what ends it."""
        outside, self.kept_out = self.kept_out, self.delivered
        return outside

    def leave_protected(self, outside: int) -> None:
        """Settle that account, and go on with the one outside."""
        self.take_back_delivered()
        self.kept_out = outside

    def tell_soon(self) -> None:
        """Its context was cancelled while it was protected against hearing of it: arrange that it hears."""
        if self.context.cancellation is not None and self.context.cancellation is not self.told:
            asyncio.get_running_loop().call_soon(_tell_in_foreign_code, self, True)


class FiberTask(asyncio.Task[Any], Fiber):
    """A fiber that a switch has forked."""

    __slots__ = ("context", "delivered", "early_cancel", "kept_out", "suspension", "told")

    context: Context
    early_cancel: CancelledError | bool | None
    """True until the fiber runs; then None. A foreign cancel that comes before is kept here, to be raised there."""

    def task(self) -> asyncio.Task[Any]:
        return self

    def living_task(self) -> asyncio.Task[Any]:
        return self

    def cancel(self, msg: Any = None) -> bool:
        """As asyncio's, but a task that has not begun still begins, so that its switch hears how it ended."""
        if self.early_cancel is None:
            return super().cancel(msg)
        if self.early_cancel is True:
            self.early_cancel = CancelledError() if msg is None else CancelledError(msg)
        return True


class _ForeignFiber(Fiber):
    """A task that is not ours, while it lives: the root of a small tree of its own."""

    __slots__ = ("_task", "context", "delivered", "kept_out", "suspension", "told")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = weakref.ref(task, functools.partial(_task_gone, weakref.ref(self)))
        self.suspension = None
        self.told = None
        self.delivered = 0
        self.kept_out = 0
        self.context = Context(None, f"task {task.get_name()!r}")
        self.context.fibers[self] = None

    def living_task(self) -> asyncio.Task[Any] | None:
        return self._task()


def _task_gone(ref: weakref.ref[_ForeignFiber], _: object) -> None:
    """A fiber and its context hold each other, and would stay until garbage collection, wherever it was just then."""
    fiber = ref()
    if fiber is not None:
        fiber.context.fibers.pop(fiber, None)


class Context:
    """A node of the tree. Open while `cancellation` is None, then cancelled, for good.

    `parent` is None at a root. A `protected` context is not reached by what cancels its parent. `label` says in
    dumps what it belongs to; `owner` is the switch, where it is a switch's. `adopted` is work without a fiber.
    `told_outside` is the last cancellation that the fiber which entered it had heard of before.
    """

    __slots__ = (
        "__weakref__",
        "adopted",
        "cancellation",
        "children",
        "fibers",
        "label",
        "owner",
        "parent",
        "protected",
        "told_outside",
    )

    def __init__(self, parent: Context | None, label: str, *, protected: bool = False, owner: Any = None) -> None:
        self.parent = parent
        self.label = label
        self.protected = protected
        self.owner = owner
        self.children: dict[Context, None] = {}
        self.fibers: dict[Fiber, None] = {}
        self.adopted: dict[Work, None] = {}
        self.cancellation: Cancellation | None = None
        self.told_outside: Cancellation | None = None
        if parent is None:
            _roots.add(self)
        else:
            parent.children[self] = None
            if not protected:
                self.cancellation = parent.cancellation

    def cancel(self, reason: BaseException | None) -> Cancellation | None:
        """Cancel everything in here; returns what that did, or None where it was cancelled already."""
        if self.cancellation is not None:
            return None
        cancellation = Cancellation(reason)
        waiting: list[Suspension[Any]] = []
        elsewhere: list[Fiber] = []
        adopted: list[Work] = []
        contexts = [self]
        for context in contexts:  # which grows meanwhile
            context.cancellation = cancellation
            adopted += context.adopted
            for fiber in list(context.fibers):  # of which one may be collected as garbage meanwhile
                suspension = fiber.suspension
                if suspension is not None and suspension.is_cancellable:
                    waiting.append(suspension)
                else:
                    elsewhere.append(fiber)
            contexts += [child for child in context.children if child.cancellation is None and not child.protected]
        if len(waiting) > 1:
            waiting.sort(key=_since)
        for suspension in waiting:
            suspension.cancel(cancellation)
        for work in adopted:
            work.cancel(reason)
        if elsewhere:
            call_soon = asyncio.get_running_loop().call_soon
            for fiber in elsewhere:
                call_soon(_tell_in_foreign_code, fiber, True)
        return cancellation

    def tree(self) -> Iterator[tuple[int, Context]]:
        """This context and all below it, each before those below it, with its depth. May be as deep as one likes."""
        stack = [(0, self)]
        while stack:
            depth, context = stack.pop()
            yield depth, context
            stack += [(depth + 1, child) for child in reversed(list(context.children))]


def _since(suspension: Suspension[Any]) -> float:
    return suspension.since


def _tell_in_foreign_code(fiber: Fiber, patient: bool) -> None:
    """Interrupt a fiber that waits in foreign code, if its context is still cancelled and it has not heard yet."""
    cancellation = fiber.context.cancellation
    if cancellation is None or cancellation is fiber.told:
        return
    task = fiber.living_task()
    if task is None or task.done():
        return
    if fiber.suspension is not None:
        if fiber.suspension.is_cancellable:
            # It was beginning this wait when it was cancelled, by a finalizer or a message that it read meanwhile.
            fiber.suspension.cancel(cancellation)
        elif not fiber.suspension.is_protected:
            # What it waited for is done, and it is about to run with the result. The end of a protected wait calls
            # here again.
            asyncio.get_running_loop().call_soon(_tell_in_foreign_code, fiber, patient)
        return
    waiter = cast(Any, task)._fut_waiter
    if patient and (waiter is None or waiter.done()):
        # It is in the run queue. Let it run first: the operation that it has completed is not undone.
        asyncio.get_running_loop().call_soon(_tell_in_foreign_code, fiber, False)
        return
    fiber.told = cancellation
    fiber.delivered += 1
    task.cancel()


def _cancel_again(fiber: Fiber, task: asyncio.Task[Any], standing: int, message: tuple[Any, ...]) -> None:
    others = _postponed.pop(fiber) - 1
    if others:
        _postponed[fiber] = others
    if not task.done() and task.cancelling() - fiber.delivered >= standing:
        task.uncancel()
        task.cancel(*message)


_postponed: dict[Fiber, int] = {}  # until the next turn of their loop
_roots: weakref.WeakSet[Context] = weakref.WeakSet()
_foreign: weakref.WeakKeyDictionary[asyncio.Task[Any], _ForeignFiber] = weakref.WeakKeyDictionary()


def root_contexts() -> list[Context]:
    """The roots of all trees of this process."""
    return list(_roots)


def current_fiber() -> Fiber:
    """The fiber that runs now. Raises RuntimeError outside of any task."""
    loop = running_loop()
    if loop is None:
        raise _nothing_runs()
    remember(loop)
    return fiber_on(loop)


def fiber_on(loop: asyncio.AbstractEventLoop) -> Fiber:
    """The fiber that runs now, on a loop that is known to be the running one."""
    task = running_task(loop)
    if type(task) is FiberTask:
        return task
    if task is None:
        raise _nothing_runs()
    fiber = _foreign.get(task)
    if fiber is None:
        fiber = _foreign[task] = _ForeignFiber(task)
    return fiber


def _nothing_runs() -> RuntimeError:
    return RuntimeError("this must be called in a fiber, or in an asyncio task: nothing can wait here")


def check() -> None:
    """Raise Cancelled if this fiber's context is cancelled."""
    try:
        fiber: Any = running_task(here.loop)
    except RuntimeError:  # no loop runs here
        fiber = None
    if type(fiber) is not FiberTask:
        fiber = current_fiber()
    cancellation = fiber.context.cancellation
    if cancellation is not None:
        raise cancellation.tell(fiber)


def is_cancelled() -> bool:
    """Whether `check` would raise."""
    return current_fiber().context.cancellation is not None
