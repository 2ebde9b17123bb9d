"""Promises and resolvers inside one domain (S33 to S38)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import threading
import traceback
import weakref
from asyncio import CancelledError
from collections.abc import Callable
from typing import Any

import pytest

from domains import (
    AlreadyResolved,
    Cancelled,
    CancelScope,
    Promise,
    Raised,
    Resolver,
    Returned,
    Switch,
    fiber,
    move_on_after,
    protect,
)

from .conftest import Run


class Broken(Exception):
    """A failure of the tests' own."""


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await fiber.yield_now()


def test_resolving_wakes_all_waiters_in_the_order_in_which_they_began_to_wait(run: Run) -> None:  # S33
    woken: list[int] = []
    order = [3, 1, 4, 0, 2]

    async def main() -> None:
        promise, resolver = Promise[str].create()

        async def wait(number: int, delay: int) -> None:
            await turns(delay)
            assert await promise == "value"
            woken.append(number)

        async with Switch() as switch:
            for number in range(5):
                switch.fork(wait, number, 2 + 2 * order.index(number))
            await turns(20)
            resolver.resolve("value")
            assert woken == []

    run(main)
    assert woken == order


def test_awaiting_a_resolved_promise_does_not_switch(run: Run) -> None:  # S33
    trace: list[str] = []

    async def main() -> None:
        async with Switch() as switch:
            switch.fork(trace.append, "other")
            promise, resolver = Promise[int].create()
            resolver.resolve(1)
            assert await promise == 1
            assert await Promise.resolved(2) == 2
            with pytest.raises(Broken):
                await Promise.failed(Broken())
            trace.append("awaited")

    run(main)
    assert trace == ["awaited", "other"]


def test_it_is_resolved_once() -> None:  # S34
    for resolve in ("resolve", "fail"):
        promise, resolver = Promise[Any].create("once")
        assert promise.peek() is None
        assert not promise.is_resolved
        error = Broken()
        getattr(resolver, resolve)(error)
        assert promise.is_resolved
        outcome = promise.peek()
        assert outcome == (Returned(error) if resolve == "resolve" else Raised(error, None))
        for again in (lambda: resolver.resolve(2), lambda: resolver.fail(Broken())):  # noqa: B023
            with pytest.raises(AlreadyResolved, match="'once'"):
                again()
        assert resolver.try_resolve(3) is False
        assert resolver.try_fail(Broken()) is False
        assert promise.peek() is outcome


def test_try_tells_whether_it_was_first() -> None:  # S34
    promise, resolver = Promise[int].create()
    assert resolver.try_resolve(1) is True
    assert promise.peek() == Returned(1)
    promise, resolver = Promise[int].create()
    error = Broken()
    assert resolver.try_fail(error) is True
    assert promise.peek() == Raised(error, None)


def test_any_number_of_fibers_get_the_same_object_before_or_after(run: Run) -> None:  # S34
    got: list[object] = []

    async def main() -> None:
        promise, resolver = Promise[object].create()
        value = object()

        async def wait() -> None:
            got.append(await promise)

        async with Switch() as switch:
            switch.fork(wait)
            switch.fork(wait)
            await turns()
            resolver.resolve(value)
            switch.fork(wait)
            await wait()
        assert len(got) == 4
        assert all(one is value for one in got)

    run(main)


def test_cancelling_one_waiter_leaves_the_others_and_the_promise_alone(run: Run) -> None:  # S35
    async def main() -> None:
        promise, resolver = Promise[str].create()

        async def wait() -> str:
            return await promise

        async with Switch() as switch:
            before = switch.fork_promise(wait)
            with move_on_after(0.001) as scope:
                await promise
            assert scope.cancelled
            task = asyncio.ensure_future(wait())
            after = switch.fork_promise(wait)
            await turns()
            task.cancel()
            with pytest.raises(CancelledError):
                await task
            assert not promise.is_resolved
            resolver.resolve("value")
            assert await before == await after == "value"

    run(main)


def test_a_waiter_that_is_cancelled_in_the_turn_of_the_resolution_gets_one_of_both(run: Run) -> None:  # S35 S32
    async def main() -> None:
        for resolve_first in (True, False):
            promise, resolver = Promise[str].create()
            outcomes: list[str] = []

            async def wait() -> None:
                try:
                    outcomes.append(await promise)  # noqa: B023
                except Cancelled:
                    outcomes.append("cancelled")  # noqa: B023

            async with Switch() as switch:
                switch.fork(wait)
                await turns()
                if resolve_first:
                    resolver.resolve("value")
                switch.cancel()
                if not resolve_first:
                    resolver.resolve("value")
            assert outcomes == ["value" if resolve_first else "cancelled"]

    run(main)


def test_each_awaiter_raises_the_same_exception_without_growing_its_traceback(run: Run) -> None:  # S36
    async def main() -> None:
        promise, resolver = Promise[None].create()
        failure = Broken()
        try:
            raise failure
        except Broken:
            resolver.fail(failure)

        async def lengths() -> int:
            try:
                await promise
            except Broken as error:
                assert error is failure  # noqa: PT017
                return len(traceback.extract_tb(error.__traceback__))
            raise AssertionError

        first = await lengths()
        assert first <= 3
        async with Switch() as switch:
            results = [switch.fork_promise(lengths) for _ in range(20)]
        assert [await result for result in results] == [first] * 20

    run(main)


def test_a_failed_promise_is_in_no_cycle_with_its_failure(run: Run) -> None:  # S36
    refs: list[weakref.ref[Any]] = []

    async def wait(promise: Promise[None]) -> None:
        with contextlib.suppress(Broken):
            await promise

    def failed() -> Promise[None]:
        promise, resolver = Promise[None].create()
        failure = Broken()
        refs.extend([weakref.ref(promise), weakref.ref(failure)])
        resolver.fail(failure)
        return promise

    async def main() -> None:
        gc.collect()
        gc.disable()
        try:
            for _ in range(2):
                with contextlib.suppress(Broken):
                    await failed()
            await turns()
            assert [ref() for ref in refs] == [None] * 4
        finally:
            gc.enable()

    run(main)


def test_dropping_a_resolver_wakes_nobody(run: Run) -> None:  # S37
    async def main() -> None:
        promise, resolver = Promise[None].create()
        async with Switch() as switch:
            waiting = switch.fork_promise(lambda: promise)
            await turns()
            dropped = weakref.ref(resolver)
            del resolver
            gc.collect()
            assert dropped() is None
            await turns()
            assert not waiting.is_resolved
            switch.cancel()

    run(main)


@pytest.mark.parametrize("kind", [Cancelled, CancelledError])
def test_a_promise_that_failed_with_cancelled_raises_it_though_nobody_cancelled(
    run: Run, kind: Callable[[], CancelledError]
) -> None:  # S38
    own = kind()

    async def main() -> None:
        promise, resolver = Promise[None].create()
        asyncio.get_running_loop().call_soon(resolver.fail, own)
        for _ in range(2):
            with pytest.raises(CancelledError) as caught:
                await promise
            assert caught.value is own
        fiber.check()
        assert not fiber.is_cancelled()
        await turns()
        with pytest.raises(CancelledError) as caught:
            async with Switch() as switch:
                switch.fork(lambda: promise)
        assert caught.value is own

    run(main)


def test_a_resolved_promise_in_a_cancelled_context_raises_cancelled(run: Run) -> None:  # S8 S33
    async def main() -> None:
        promise = Promise.resolved("value")
        with CancelScope() as scope:
            scope.cancel()
            with protect():
                assert await promise == "value"
            await promise
        assert scope.cancelled

    run(main)


def test_a_promise_fails_with_exceptions_only() -> None:  # S36
    promise, resolver = Promise[None].create()
    for wrong in (None, "text", Broken):
        for fail in (resolver.fail, resolver.try_fail, Promise.failed):
            with pytest.raises(TypeError, match="exception"):
                fail(wrong)  # type: ignore[operator]
    assert not promise.is_resolved


def test_it_may_be_resolved_from_another_thread(run: Run) -> None:  # S33
    async def main() -> None:
        for delay in range(5):
            promises = [Promise[int].create() for _ in range(50)]

            def resolve(promises: list[tuple[Promise[int], Resolver[int]]]) -> None:
                for number, (_, resolver) in enumerate(promises):
                    resolver.resolve(number)

            thread = threading.Thread(target=resolve, args=[promises])
            thread.start()
            await turns(delay)
            assert [await promise for promise, _ in promises] == list(range(50))
            thread.join()

    run(main)


def test_of_several_threads_that_resolve_exactly_one_does(run: Run) -> None:  # S34
    async def main() -> None:
        for _ in range(20):
            promise, resolver = Promise[int].create()
            start = threading.Barrier(4)
            won: list[int] = []

            def resolve(number: int, start: threading.Barrier, resolver: Resolver[int], won: list[int]) -> None:
                start.wait()
                if resolver.try_resolve(number):
                    won.append(number)

            threads = [threading.Thread(target=resolve, args=[number, start, resolver, won]) for number in range(4)]
            for thread in threads:
                thread.start()
            value = await promise
            for thread in threads:
                thread.join()
            assert won == [value]

    run(main)


def test_something_else_may_wait_in_turn_with_the_fibers(run: Run) -> None:  # S33
    trace: list[str] = []

    class Waiter:
        def resume(self, value: None) -> bool:
            trace.append("told")
            return True

        def throw(self, error: BaseException) -> bool:
            raise AssertionError

    async def main() -> None:
        promise, resolver = Promise[int].create()
        promise.when_resolved(Waiter())
        withdrawn = Waiter()
        promise.when_resolved(withdrawn)(withdrawn)
        resolver.resolve(1)
        assert trace == ["told"]
        promise.when_resolved(Waiter())
        assert trace == ["told", "told"]

    run(main)


def test_its_repr_names_label_and_outcome() -> None:
    promise, resolver = Promise[str].create("the label")
    assert repr(promise) == "<promise 'the label', unresolved>"
    assert repr(resolver) == "<resolver of <promise 'the label', unresolved>>"
    resolver.resolve("value")
    assert repr(promise) == "<promise 'the label', resolved with 'value'>"
    assert repr(Promise.failed(Broken("why"))) == "<promise, failed with Broken('why')>"


def test_a_promise_and_a_resolver_do_not_pickle_by_themselves() -> None:
    for thing in Promise[int].create():
        with pytest.raises(TypeError, match="between domains"):
            pickle.dumps(thing)
