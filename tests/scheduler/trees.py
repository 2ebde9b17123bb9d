"""Random programs of nested switches, scopes and waits, run beside a model that knows who may be cancelled when.

A program is a tree of nodes, which fibers interpret, and a script of what happens to it from outside: cancellations of
scopes and switches, failures, promises that are resolved, somebody's `task.cancel()`. The model is a tree of places,
each with the number of the event that cancelled it; it shares nothing with the scheduler. Every operation is compared
with it as it ends, every scope and switch as it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import strategies as st

from domains import Cancelled, CancelScope, Promise, Resolver, Switch, fiber, move_on_after, protect, timeout
from domains.scheduler.clock import sleep

PROMISES = 4
Node = tuple[Any, ...]


class Broken(Exception):
    """A failure that a program asked for."""


class Place:
    """What the model knows of one context."""

    def __init__(
        self,
        parent: Place | None,
        *,
        owner: FiberRecord | None = None,
        protected: bool = False,
        deadline: float = math.inf,
    ) -> None:
        self.parent = parent
        self.owner = owner  # who waits for all in here, and cancels it where somebody calls his task.cancel()
        self.protected = protected
        self.deadline = deadline
        self.cancelled_by_event: int | None = None
        self.cancel: Callable[[], object] | None = None  # from outside, while it is there
        self.failures: list[BaseException] = []
        self.is_ending = False  # daemons may be cancelled at any time from now on
        self.has_ended = False
        self.had_foreign_cancel = False

    def path(self) -> list[Place]:
        """Itself, and those whose cancellation reaches it."""
        places = [self]
        while not places[-1].protected and places[-1].parent is not None:
            places.append(places[-1].parent)
        return places

    def cancelled_at(self) -> int | None:
        """The event since which it is certainly cancelled."""
        events = [place.cancelled_by_event for place in self.path() if place.cancelled_by_event is not None]
        return min(events, default=None)

    def may_be_cancelled(self, now: float) -> bool:
        return self.cancelled_at() is not None or self.may_be_cancelled_unseen(now)

    def may_be_cancelled_unseen(self, now: float) -> bool:
        """By something whose place in the order of events is not known."""
        return any(
            place.deadline <= now or place.is_ending or (place.owner is not None and place.owner.foreign_cancels)
            for place in self.path()
        )

    def can_be_cancelled(self) -> bool:
        """Whether there is a handle that ends what waits here."""
        return any(place.cancel is not None for place in self.path())


class FiberRecord:
    """What the model knows of one fiber."""

    def __init__(self) -> None:
        self.task = asyncio.current_task()
        self.foreign_cancels: list[int] = []  # the events


class World:
    """One run of one program."""

    def __init__(self) -> None:
        self.event = 0
        self.places: list[Place] = []  # those that can be cancelled
        self.fibers: dict[FiberRecord, None] = {}
        self.promises: list[tuple[Promise[None], Resolver[None]]] = [Promise[None].create() for _ in range(PROMISES)]
        self.resolved_at: dict[int, int] = {}
        self.waiting: dict[object, str] = {}
        self.violations: list[str] = []

    def tick(self) -> int:
        self.event += 1
        return self.event

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def require(self, is_so: object, otherwise: str) -> None:
        """Remember a violation: raised here, it would be one more failure that the program handles."""
        if not is_so:
            frame = sys._getframe(1)
            self.violations.append(f"{otherwise} (line {frame.f_lineno})")

    def require_expected(self, error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                self.require_expected(one)
        else:
            self.require(isinstance(error, Broken | TimeoutError | CancelledError), f"{error!r} was raised")

    # What happens

    def cancel(self, place: Place) -> None:
        if place.cancelled_by_event is None:
            place.cancelled_by_event = self.tick()
        assert place.cancel is not None
        place.cancel()

    def resolve(self, number: int) -> None:
        if number not in self.resolved_at:
            self.resolved_at[number] = self.tick()
        self.promises[number][1].try_resolve(None)

    def fail(self, place: Place, error: BaseException) -> None:
        """Something in a switch has ended with this."""
        if not isinstance(error, CancelledError):
            if not any(error is failure for failure in place.failures):
                place.failures.append(error)
            if place.cancelled_by_event is None:
                place.cancelled_by_event = self.tick()
        elif place.had_foreign_cancel and place.cancelled_by_event is None:
            place.cancelled_by_event = self.tick()

    # Operations

    async def operate(
        self, f: Callable[[], Awaitable[Any]], place: Place, record: FiberRecord, promise: int | None = None
    ) -> None:
        """An operation of ours: it is completed or cancelled, whichever is first, and not at all where it was late."""
        begun, token = self.tick(), object()
        was_cancelled = place.cancelled_at() is not None
        was_resolved = promise in self.resolved_at
        self.waiting[token] = f"{f} in {place}"
        try:
            await f()
        except Cancelled:
            self.require(place.may_be_cancelled(self.now()), "nobody had cancelled it")
            if promise is not None and not was_resolved and not was_cancelled:
                cancelled_at, resolved_at = place.cancelled_at(), self.resolved_at.get(promise)
                if (
                    resolved_at is not None
                    and cancelled_at is not None
                    and not place.may_be_cancelled_unseen(self.now())
                ):
                    self.require(cancelled_at < resolved_at, "it was resolved before it was cancelled")
            raise
        except CancelledError:
            self.require(record.foreign_cancels, "nobody had called task.cancel()")
            if promise is not None and not was_resolved and record.foreign_cancels[0] > begun:
                resolved_at = self.resolved_at.get(promise, math.inf)
                self.require(record.foreign_cancels[0] < resolved_at, "it was resolved before task.cancel() was called")
            raise
        else:
            self.require(not was_cancelled, "it was completed in a context that had been cancelled before it began")
            if promise is not None and not was_resolved:
                cancelled_at = place.cancelled_at()
                is_first = cancelled_at is None or self.resolved_at[promise] < cancelled_at
                self.require(is_first, "it was cancelled before it was resolved")
        finally:
            del self.waiting[token]
            self.require(not any(one.has_ended for one in place.path()), "it ran on after its switch had ended")

    async def operate_foreign(self, seconds: float, place: Place, record: FiberRecord) -> None:
        token = object()
        self.waiting[token] = "asyncio.sleep"
        try:
            await asyncio.sleep(seconds)
        except CancelledError:
            self.require(record.foreign_cancels or place.may_be_cancelled(self.now()), "nobody had cancelled it")
            raise
        finally:
            del self.waiting[token]

    # Nodes

    async def run(self, nodes: list[Node], place: Place, record: FiberRecord) -> None:
        for node in nodes:
            await getattr(self, node[0])(place, record, *node[1:])

    async def turns(self, place: Place, record: FiberRecord, count: int) -> None:
        for _ in range(count):
            await self.operate(fiber.yield_now, place, record)

    async def nap(self, place: Place, record: FiberRecord, seconds: float) -> None:
        await self.operate(lambda: sleep(seconds), place, record)

    async def foreign(self, place: Place, record: FiberRecord, seconds: float) -> None:
        await self.operate_foreign(seconds, place, record)

    async def wait(self, place: Place, record: FiberRecord, number: int) -> None:
        async def f() -> None:
            await self.promises[number][0]

        await self.operate(f, place, record, number)

    async def never(self, place: Place, record: FiberRecord) -> None:
        await self.operate(fiber.await_cancel if place.can_be_cancelled() else fiber.yield_now, place, record)

    async def resolves(self, place: Place, record: FiberRecord, number: int) -> None:
        self.resolve(number)

    async def fails(self, place: Place, record: FiberRecord) -> None:
        raise Broken(self.tick())

    async def swallow(self, place: Place, record: FiberRecord, nodes: list[Node]) -> None:
        with contextlib.suppress(Cancelled):
            await self.run(nodes, place, record)

    async def handle(self, place: Place, record: FiberRecord, nodes: list[Node]) -> None:
        try:
            await self.run(nodes, place, record)
        except Exception as error:
            self.require_expected(error)

    async def clean_up(self, place: Place, record: FiberRecord, nodes: list[Node], finally_: list[Node]) -> None:
        try:
            await self.run(nodes, place, record)
        finally:
            await self.run(finally_, place, record)

    async def scope(self, place: Place, record: FiberRecord, kind: str, seconds: float, nodes: list[Node]) -> None:
        deadline = self.now() + seconds if kind in ("timeout", "move on") else math.inf
        if kind == "protect":
            with protect():
                await self.run(nodes, Place(place, protected=True), record)
            return
        inner = Place(place, deadline=deadline)
        scope = CancelScope() if kind == "cancel" else timeout(seconds) if kind == "timeout" else move_on_after(seconds)
        inner.cancel = scope.cancel
        own: list[BaseException] = []
        try:
            with scope:
                self.places.append(inner)
                try:
                    await self.run(nodes, inner, record)
                except BaseException as error:
                    own.append(error)
                    raise
                finally:
                    self.places.remove(inner)
        except CancelledError:
            is_from_outside = place.may_be_cancelled(self.now()) or record.foreign_cancels
            self.require(is_from_outside, "a scope let out what was its own")
            raise
        except TimeoutError as error:
            is_its_own = error not in own
            self.require(not is_its_own or (kind == "timeout" and deadline <= self.now()), "it was not due")
            raise
        else:
            self.require(not own or inner.may_be_cancelled(self.now()), "a scope swallowed what was not its own")
            if kind == "timeout" and own:
                self.require(inner.cancelled_by_event is not None, "a deadline was hidden")
        if scope.cancelled:
            self.require(own, "it was cut short, but had ended by itself")

    async def switch(
        self,
        place: Place,
        record: FiberRecord,
        protected: bool,
        children: list[tuple[str, list[Node]]],
        nodes: list[Node],
    ) -> None:
        inner = Place(place, owner=record, protected=protected)
        daemons = Place(inner)
        promises: list[Promise[None]] = []
        try:
            async with Switch(protected=protected) as switch:
                inner.cancel = switch.cancel
                self.places.append(inner)
                try:
                    for how, child in children:
                        if how == "fork":
                            switch.fork(self.child, inner, inner, child)
                        elif how == "daemon":
                            switch.fork_daemon(self.child, daemons, inner, child)
                        elif how == "promise":
                            promises.append(switch.fork_promise(self.child, inner, None, child))
                        else:
                            switch.on_release(self.hook, inner, record, child)
                    await self.run(nodes, inner, record)
                except BaseException as error:
                    inner.had_foreign_cancel |= bool(record.foreign_cancels)
                    self.fail(inner, error)
                    raise
                finally:
                    daemons.is_ending = True
                    switch.on_release(self.places.remove, inner)
        except CancelledError:
            self.require(not inner.failures, "failures were hidden")
            self.require(
                place.may_be_cancelled(self.now()) or inner.had_foreign_cancel or record.foreign_cancels,
                "a switch let out what was its own",
            )
            if inner.had_foreign_cancel:
                record.foreign_cancels.append(self.tick())  # it goes on outwards
            raise
        except BaseException as error:
            left = (
                list(error.exceptions) if isinstance(error, BaseExceptionGroup) and len(inner.failures) > 1 else [error]
            )
            self.require([id(one) for one in left] == [id(one) for one in inner.failures], "failures were changed")
            raise
        else:
            self.require(not inner.failures, "failures were hidden")
        finally:
            inner.has_ended = daemons.has_ended = True
            self.require(all(promise.is_resolved for promise in promises), "a promise was forgotten")
            for promise in promises:
                promise.peek()

    async def child(self, place: Place, fails: Place | None, nodes: list[Node]) -> None:
        """A fiber; its failure is one of the switch `fails`."""
        record = FiberRecord()
        self.fibers[record] = None
        self.require(place.cancelled_at() is None, "a fiber began in a context that was cancelled")
        try:
            await self.run(nodes, place, record)
            task = record.task
            if not record.foreign_cancels and not place.may_be_cancelled(self.now()):
                self.require(task is not None and task.cancelling() == 0, "asyncio's account is not settled")
        except BaseException as error:
            self.require_expected(error)
            if fails is not None:
                fails.had_foreign_cancel |= bool(record.foreign_cancels)
                self.fail(fails, error)
            raise
        finally:
            del self.fibers[record]

    async def hook(self, switch: Place, record: FiberRecord, nodes: list[Node]) -> None:
        try:
            await self.run(nodes, Place(switch, protected=True), record)
        except BaseException as error:
            self.require_expected(error)
            if not isinstance(error, CancelledError):
                switch.failures.append(error)
            else:
                switch.had_foreign_cancel = True
            raise

    async def race(self, place: Place, record: FiberRecord, sides: list[list[Node]]) -> None:
        inner = Place(place, owner=record)
        results: list[int] = []
        is_late = False  # a result that comes after a failure does not count

        def side(number: int, nodes: list[Node]) -> Callable[[], Awaitable[int]]:
            async def f() -> int:
                nonlocal is_late
                await self.child(inner, inner, nodes)
                is_late |= not results and inner.cancelled_by_event is not None
                results.append(number)
                if inner.cancelled_by_event is None:
                    inner.cancelled_by_event = self.tick()
                return number

            return f

        try:
            returned = await fiber.n_any([side(number, nodes) for number, nodes in enumerate(sides)])
            self.require(returned == results, "a result was lost")
            self.require(results, "there is no result")
            self.require(not inner.failures, "a failure was hidden")
        except CancelledError:
            self.require(not results or is_late, "a result was lost")
            is_from_outside = place.may_be_cancelled(self.now()) or inner.had_foreign_cancel or record.foreign_cancels
            self.require(is_from_outside, "a race let out what was its own")
            if inner.had_foreign_cancel:
                record.foreign_cancels.append(self.tick())  # it goes on outwards
            raise
        except BaseException as error:
            left = (
                list(error.exceptions) if isinstance(error, BaseExceptionGroup) and len(inner.failures) > 1 else [error]
            )
            self.require([id(one) for one in left] == [id(one) for one in inner.failures], "failures were changed")
            raise
        finally:
            inner.has_ended = True

    # The script

    async def play(self, script: list[Node]) -> None:
        for step in script:
            if step[0] == "turn":
                for _ in range(step[1]):
                    await fiber.yield_now()
            elif step[0] == "pause":
                await sleep(step[1])
            elif step[0] == "resolve":
                self.resolve(step[1])
            elif step[0] == "cancel" and self.places:
                self.cancel(self.places[step[1] % len(self.places)])
            elif step[0] == "interrupt" and self.fibers:
                records = list(self.fibers)
                record = records[step[1] % len(records)]
                record.foreign_cancels.append(self.tick())
                assert record.task is not None
                record.task.cancel()
        for _ in range(1000):
            for number in range(PROMISES):
                self.resolve(number)
            for place in list(self.places):
                self.cancel(place)
            await sleep(10)
            if not self.fibers:
                return
        raise AssertionError(f"still waiting: {self.waiting}")


async def play(tree: list[Node], script: list[Node]) -> World:
    """Run a program to its end, and compare."""
    world = World()
    top = Place(None)
    try:
        async with Switch("top") as switch:
            switch.fork_promise(world.child, Place(top), None, tree).peek()
            await fiber.yield_now()
            await world.play(script)
    finally:
        top.has_ended = True
    assert world.violations == [], world.violations
    assert not world.fibers
    assert not world.waiting
    assert not world.places
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    fiber.check()
    return world


def _trees() -> st.SearchStrategy[list[Node]]:
    seconds = st.sampled_from([0, 0.5, 1, 1, 2])
    leaf: st.SearchStrategy[Node] = st.one_of(
        st.tuples(st.just("turns"), st.integers(1, 4)),
        st.tuples(st.just("wait"), st.integers(0, PROMISES - 1)),
        st.tuples(st.just("nap"), seconds),
        st.tuples(st.just("never")),
        st.tuples(st.just("foreign"), seconds),
        st.tuples(st.just("resolves"), st.integers(0, PROMISES - 1)),
        st.tuples(st.just("fails")),
    )

    def inner(node: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        nodes = st.lists(node, max_size=3)
        child = st.tuples(st.sampled_from(["fork", "fork", "daemon", "promise", "hook"]), nodes)
        return st.one_of(
            st.tuples(st.just("switch"), st.booleans(), st.lists(child, max_size=4), nodes),
            st.tuples(st.just("switch"), st.just(False), st.lists(child, max_size=4), nodes),
            st.tuples(st.just("scope"), st.sampled_from(["cancel", "protect", "timeout", "move on"]), seconds, nodes),
            st.tuples(st.just("race"), st.lists(nodes, min_size=1, max_size=3)),
            st.tuples(st.just("clean_up"), nodes, nodes),
            st.tuples(st.just("swallow"), nodes),
            st.tuples(st.just("handle"), nodes),
        )

    return st.lists(st.recursive(leaf, inner, max_leaves=25), min_size=1, max_size=4)


def _scripts() -> st.SearchStrategy[list[Node]]:
    step = st.one_of(
        st.tuples(st.just("turn"), st.integers(1, 4)),
        st.tuples(st.just("turn"), st.integers(1, 4)),
        st.tuples(st.just("pause"), st.sampled_from([0.5, 1.0])),
        st.tuples(st.just("resolve"), st.integers(0, PROMISES - 1)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("interrupt"), st.integers(0, 30)),
    )
    return st.lists(step, max_size=30)


trees = _trees()
scripts = _scripts()
