"""Functions that run several fibers, inheritance of variables, and sequences (S1 to S14)."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import threading
import traceback
import weakref
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from domains import Cancelled, CancelScope, FiberLocal, Promise, Stream, Switch, fiber, move_on_after, protect, timeout
from domains.scheduler.clock import sleep

from .conftest import Run

Yield = Callable[[Any], Awaitable[None]]


class Broken(Exception):
    """A failure of the tests' own."""


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await fiber.yield_now()


async def never() -> None:
    await fiber.await_cancel()


def broken(text: str = "") -> Callable[[], Awaitable[None]]:
    async def fail() -> None:
        raise Broken(text)

    return fail


def after(count: int, value: Any) -> Callable[[], Awaitable[Any]]:
    """A function that takes some turns, and returns the value, or raises it."""

    async def f() -> Any:
        await turns(count)
        if isinstance(value, BaseException):
            raise value
        return value

    return f


def together(*values: Any) -> list[Callable[[], Awaitable[Any]]]:
    """Functions that wait, are woken in one turn of the loop, and then return these values."""
    promise, resolver = Promise[None].create()

    def wait(value: Any) -> Callable[[], Awaitable[Any]]:
        async def f() -> Any:
            await promise
            return value

        return f

    async def wake() -> Any:
        await turns()
        resolver.resolve(None)
        await fiber.await_cancel()

    return [*(wait(value) for value in values), wake]


def when_cancelled(value: Any) -> Callable[[], Awaitable[Any]]:
    """A function that waits until it is cancelled, and then returns the value, or raises it."""

    async def f() -> Any:
        try:
            await fiber.await_cancel()
        except CancelledError:
            if isinstance(value, BaseException):
                raise value from None
            return value

    return f


# both, pair, all


def test_both_starts_f_then_g_and_waits_for_both(run: Run) -> None:  # S1
    trace: list[str] = []

    def side(name: str, count: int) -> Callable[[], Awaitable[None]]:
        async def f() -> None:
            trace.append(f"{name} begins")
            await turns(count)
            trace.append(f"{name} ends")

        return f

    async def main() -> None:
        await fiber.both(side("f", 5), side("g", 2))
        trace.append("both")

    run(main)
    assert trace == ["f begins", "g begins", "g ends", "f ends", "both"]


def test_the_failure_of_one_side_cancels_the_other_and_is_raised_as_itself(run: Run) -> None:  # S1
    trace: list[str] = []
    failure = Broken("f")

    async def g() -> None:
        try:
            await never()
        finally:
            with protect():
                await turns()
            trace.append("g ended")

    async def main() -> None:
        with pytest.raises(Broken) as caught:
            await fiber.both(after(1, failure), g)
        assert caught.value is failure
        assert trace == ["g ended"]

    run(main)


def test_both_takes_plain_functions_and_operations(run: Run) -> None:  # S1
    trace: list[str] = []

    async def main() -> None:
        await fiber.both(lambda: trace.append("plain"), fiber.yield_now)
        assert await fiber.pair(lambda: 1, lambda: Promise.resolved(2)) == (1, 2)

    run(main)
    assert trace == ["plain"]


def test_yield_now_in_a_fiber_of_its_own_is_run(run: Run) -> None:  # S1 S8
    async def main() -> None:
        scope = CancelScope()
        with scope:
            scope.cancel()
            with pytest.raises(Cancelled):
                await fiber.all([fiber.yield_now])
        async with Switch() as switch:
            promise = switch.fork_promise(fiber.yield_now)
        assert await promise is None

    run(main)


def test_two_failures_are_raised_as_a_group_in_the_order_of_failing(run: Run) -> None:  # S2
    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            await fiber.both(when_cancelled(Broken("f, late")), after(2, Broken("g, early")))
        assert [str(error) for error in caught.value.exceptions] == ["g, early", "f, late"]

    run(main)


def test_many_failures_keep_their_order_in_the_group(run: Run) -> None:  # S2
    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            await fiber.all([when_cancelled(Broken(str(number))) for number in range(20)] + [after(1, Broken("began"))])
        assert [str(error) for error in caught.value.exceptions] == ["began", *map(str, range(20))]

    run(main)


def test_a_side_that_is_cancelled_by_the_failure_of_the_other_adds_nothing(run: Run) -> None:  # S2
    async def main() -> None:
        for other in (never, functools.partial(asyncio.sleep, 1000), after(1000, None)):
            with pytest.raises(Broken, match="alone"):
                await fiber.both(broken("alone"), other)

    run(main)


def test_the_same_exception_from_both_sides_is_raised_as_itself(run: Run) -> None:  # S2
    failure = Broken()

    async def main() -> None:
        promise: Promise[None] = Promise.failed(failure)

        async def f() -> None:
            with protect():
                await turns()
                await promise

        with pytest.raises(Broken) as caught:
            await fiber.both(f, f)
        assert caught.value is failure

    run(main)


@pytest.mark.parametrize("make", [Cancelled, CancelledError])
def test_a_side_that_raises_cancelled_for_a_reason_of_its_own_has_failed(
    run: Run, make: Callable[[], CancelledError]
) -> None:  # S3
    own = make()
    trace: list[str] = []

    async def g() -> None:
        try:
            await never()
        except Cancelled as cancelled:
            trace.append("cancelled because of its own" if cancelled.reason is own else "cancelled")
            raise

    async def main() -> None:
        with pytest.raises(CancelledError) as caught:
            await fiber.both(after(1, own), g)
        assert caught.value is own
        assert not fiber.is_cancelled()

    run(main)
    assert trace == ["cancelled because of its own"]


def test_pair_and_all_keep_the_order_of_the_functions(run: Run) -> None:  # S4
    async def main() -> None:
        assert await fiber.pair(after(5, "f"), after(1, "g")) == ("f", "g")
        assert await fiber.all([after(5 - number, number) for number in range(5)]) == [0, 1, 2, 3, 4]
        assert await fiber.all([]) == []
        assert await fiber.all(iter([after(1, "once")])) == ["once"]

    run(main)


# map and its family


@pytest.mark.parametrize("max_fibers", [None, 1, 2, 3, 100])
def test_map_filter_and_filter_map_keep_the_order_of_what_they_read(run: Run, max_fibers: int | None) -> None:  # S4
    async def square(number: int) -> int:
        await turns((7 * number) % 5)
        return number * number

    async def is_even(number: int) -> bool:
        await turns((7 * number) % 5)
        return number % 2 == 0

    async def main() -> None:
        numbers = range(20)
        assert await fiber.map(square, numbers, max_fibers) == [number * number for number in numbers]
        assert await fiber.map(str, numbers, max_fibers) == [str(number) for number in numbers]
        assert await fiber.filter(is_even, numbers, max_fibers) == list(range(0, 20, 2))
        assert await fiber.filter(lambda number: number > 17, numbers, max_fibers) == [18, 19]
        kept = await fiber.filter_map(lambda number: number if number % 7 == 0 else None, numbers, max_fibers)
        assert kept == [0, 7, 14]
        assert await fiber.map(square, [], max_fibers) == []
        seen: list[int] = []
        assert await fiber.iter(seen.append, numbers, max_fibers) is None  # type: ignore[func-returns-value]
        assert seen == list(numbers)

    run(main)


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_map_never_has_more_than_max_fibers_running(run: Run, limit: int) -> None:  # S4
    running = 0
    most = 0

    async def f(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await turns((5 * number) % 7)
        running -= 1

    async def main() -> None:
        await fiber.iter(f, range(50), max_fibers=limit)

    run(main)
    assert most == limit


def test_map_reads_only_as_far_as_fibers_are_free(run: Run) -> None:  # S4
    read: list[int] = []
    promise, resolver = Promise[None].create()

    def source() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    async def wait(_: int) -> None:
        await promise

    async def main() -> None:
        async with Switch() as switch:
            switch.fork(fiber.iter, wait, source(), 3)
            await turns(10)
            assert read == [0, 1, 2]
            resolver.resolve(None)
        assert len(read) == 100

    run(main)


@pytest.mark.parametrize("limit", [0, -1])
def test_max_fibers_below_one_is_refused_before_anything_starts(run: Run, limit: int) -> None:  # S4
    async def main() -> None:
        def source() -> Iterator[int]:
            pytest.fail("was read")
            yield 1

        for f in (fiber.map, fiber.filter, fiber.filter_map, fiber.iter):
            with pytest.raises(ValueError, match="max_fibers"):
                await f(lambda _: pytest.fail("was run"), source(), limit)  # type: ignore[operator]

    run(main)


@pytest.mark.parametrize("limit", [1.5, float("nan"), "2", True])
def test_max_fibers_that_is_no_integer_is_refused(run: Run, limit: Any) -> None:  # S4
    async def main() -> None:
        with pytest.raises(TypeError, match="max_fibers"):
            await fiber.map(str, [1], limit)

    run(main)


@pytest.mark.parametrize("max_fibers", [None, 2])
def test_an_iterator_that_raises_cancels_what_was_started(run: Run, max_fibers: int | None) -> None:  # S4
    trace: list[str] = []
    failure = Broken("read")

    def source() -> Iterator[int]:
        yield 0
        if max_fibers is not None:
            yield 1
        raise failure

    async def f(number: int) -> None:
        if number == 1:
            return
        try:
            await never()
        except Cancelled as cancelled:
            trace.append(str(cancelled.reason))
            raise

    async def main() -> None:
        with pytest.raises(Broken) as caught:
            await fiber.map(f, source(), max_fibers)
        assert caught.value is failure

    run(main)
    assert trace == (["read"] if max_fibers is not None else [])  # what had not begun does not begin


def test_a_failure_in_map_starts_nothing_more(run: Run) -> None:  # S4 S8
    begun: list[int] = []

    async def f(number: int) -> None:
        begun.append(number)
        if number == 0:
            await turns()
            raise Broken
        try:
            await never()
        except Cancelled:
            return  # swallowed: its fiber must not take the next item all the same

    async def main() -> None:
        with pytest.raises(Broken):
            await fiber.map(f, range(100), max_fibers=3)
        assert begun == [0, 1, 2]

    run(main)


# first, any, n_any


def test_first_returns_the_first_result_when_the_other_has_ended(run: Run) -> None:  # S5
    trace: list[str] = []

    async def slow() -> str:
        try:
            return await when_cancelled(Cancelled())()  # type: ignore[no-any-return]
        finally:
            with protect():
                await turns(5)
            trace.append("slow ended")

    async def main() -> None:
        assert await fiber.first(slow, after(2, "quick")) == "quick"
        assert trace == ["slow ended"]

    run(main)


def test_a_second_success_is_for_combine_to_decide(run: Run) -> None:  # S5
    async def main() -> None:
        late = when_cancelled("late")
        early = after(1, "early")
        assert await fiber.first(late, early) == "early"
        assert await fiber.first(late, early, lambda a, b: f"{a}, then {b}") == "early, then late"
        assert await fiber.first(early, late, combine=lambda a, b: b) == "late"
        # Both in the same turn, too late to be cancelled.
        assert await fiber.any(together("f", "g"), lambda a, b: a + b) == "fg"
        # One alone is not combined.
        assert await fiber.first(never, early, lambda a, b: pytest.fail("combined")) == "early"
        assert (
            await fiber.any([after(1, 1), when_cancelled(2), never, when_cancelled(3)], lambda a, b: 10 * a + b) == 123
        )

    run(main)


def test_an_exception_in_combine_is_raised(run: Run) -> None:  # S5
    async def main() -> None:
        def combine(a: str, b: str) -> str:
            raise Broken(a + b)

        with pytest.raises(Broken, match="ab"):
            await fiber.first(when_cancelled("b"), after(1, "a"), combine)

    run(main)


def test_a_failure_before_any_success_cancels_the_other(run: Run) -> None:  # S5
    async def main() -> None:
        with pytest.raises(Broken, match="f"):
            await fiber.first(after(1, Broken("f")), never)
        with pytest.raises(Broken, match="f"):  # a success that comes after the failure does not hide it
            await fiber.first(after(1, Broken("f")), when_cancelled("success"))
        with pytest.raises(ExceptionGroup) as caught:
            await fiber.any([when_cancelled(Broken("late")), after(1, Broken("early"))])
        assert [str(error) for error in caught.value.exceptions] == ["early", "late"]

    run(main)


def test_a_failure_while_being_cancelled_is_not_hidden(run: Run) -> None:  # S5
    async def main() -> None:
        with pytest.raises(Broken, match="late"):
            await fiber.first(after(1, "early"), when_cancelled(Broken("late")))

    run(main)


def test_a_result_is_not_lost_when_its_race_is_cancelled(run: Run) -> None:  # S5 S7
    async def main() -> None:
        async def unwinds_slowly() -> None:
            try:
                await never()
            finally:
                with protect():
                    await turns(10)

        with CancelScope() as scope:
            async with Switch() as switch:
                switch.fork(turns, 5)
                promise = switch.fork_promise(fiber.first, after(1, "taken"), unwinds_slowly)
                await turns(5)
                scope.cancel()
        assert await promise == "taken"

    run(main)


def test_any_of_nothing_waits_until_cancelled(run: Run) -> None:  # S6
    async def main() -> None:
        for f in (fiber.any, fiber.n_any):
            async with Switch() as switch:
                promise = switch.fork_promise(f, [])
                await turns(5)
                assert not promise.is_resolved
                switch.cancel()
            with pytest.raises(Cancelled):
                await promise

    run(main)


def test_n_any_returns_all_results_in_the_order_of_finishing(run: Run) -> None:  # S6
    async def main() -> None:
        # b is the first, and cancels; c can run already, and ends before the others hear.
        functions = [when_cancelled("a"), never, *together("b", "c"), when_cancelled("d")]
        assert await fiber.n_any(functions) == ["b", "c", "a", "d"]

    run(main)


def test_n_any_is_deterministic_with_foreign_sleepers(run: Run) -> None:  # S6
    async def main() -> None:
        async def foreign() -> str:
            try:
                await asyncio.sleep(1000)
            except CancelledError:
                return "foreign"
            return "never"

        assert await fiber.n_any([foreign, after(1, "first")]) == ["first", "foreign"]

    run(main)


def test_first_around_two_takes_loses_no_item(run: Run) -> None:  # S7
    async def main() -> None:
        for both_at_once in (False, True):
            left: Stream[str] = Stream(1)
            right: Stream[str] = Stream(1)
            async with Switch() as switch:
                promise = switch.fork_promise(fiber.n_any, [left.take, right.take])
                await turns(5)
                left.add_nonblocking("left")
                if both_at_once:
                    right.add_nonblocking("right")
            taken = await promise
            if not both_at_once:
                right.add_nonblocking("right")
            remaining = [item for item in (left.take_nonblocking(), right.take_nonblocking()) if item is not None]
            assert sorted(taken + remaining) == ["left", "right"]
            assert taken == (["left", "right"] if both_at_once else ["left"])

    run(main)


def test_first_around_two_takes_loses_no_item_when_its_own_fiber_is_cancelled_in_the_same_turn(run: Run) -> None:  # S7
    async def taker(stream: Stream[str], scope: CancelScope, tasks: list[asyncio.Task[Any]], got: list[str]) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        try:
            with scope:
                got.extend(await fiber.n_any([stream.take, stream.take]))
                await fiber.yield_now()
        except CancelledError:
            task.uncancel()

    async def main() -> None:
        for delay in range(6):
            for foreign in (False, True):
                stream: Stream[str] = Stream(2)
                scope = CancelScope()
                tasks: list[asyncio.Task[Any]] = []
                got: list[str] = []

                async with Switch() as switch:
                    switch.fork(taker, stream, scope, tasks, got)
                    await turns(5)
                    stream.add_nonblocking("item")
                    await turns(delay)
                    tasks[0].cancel() if foreign else scope.cancel()
                assert got + [item for item in [stream.take_nonblocking()] if item] == ["item"], (delay, foreign)

    run(main)


# Cancelled contexts, yield_now


def test_nothing_starts_in_a_cancelled_context(run: Run) -> None:  # S8
    def fail(*_: Any) -> None:
        pytest.fail("was run")

    async def main() -> None:
        class Manager:
            def __enter__(self) -> None:
                fail()

            def __exit__(self, *_: object) -> None:
                fail()

        async def produce(_: Yield) -> None:
            fail()

        async with Switch() as outer:
            sequence = outer.fork_seq(produce)
            operations: list[Callable[[], Awaitable[Any]]] = [
                lambda: fiber.both(fail, fail),
                lambda: fiber.pair(fail, fail),
                lambda: fiber.all([fail]),
                lambda: fiber.all([]),
                lambda: fiber.first(fail, fail),
                lambda: fiber.any([fail]),
                lambda: fiber.any([]),
                lambda: fiber.n_any([fail]),
                lambda: fiber.map(fail, [1]),
                lambda: fiber.filter(fail, [1]),
                lambda: fiber.filter_map(fail, [1]),
                lambda: fiber.iter(fail, [1], 1),
                lambda: fiber.yield_now(),
                lambda: fiber.await_cancel(),
                lambda: sleep(0),
                lambda: sleep(1000),
                lambda: Promise.resolved(1),
                lambda: Promise[None](),
                lambda: Switch().__aenter__(),
                lambda: outer.enter(Manager()),
                lambda: anext(sequence),
            ]
            with CancelScope() as scope:
                scope.cancel()
                for operation in operations:
                    with pytest.raises(Cancelled):
                        await operation()
                outer.cancel()
            outer.fork(fail)
            outer.fork_daemon(fail)
            outer.fork_promise(fail)

    run(main)


def test_yield_now_lets_each_runnable_fiber_run_once(run: Run) -> None:  # S9
    trace: list[str] = []

    async def main() -> None:
        async def f(name: str) -> None:
            for number in range(3):
                trace.append(f"{name}{number}")
                await fiber.yield_now()

        async with Switch() as switch:
            switch.fork(f, "a")
            switch.fork(f, "b")
            for _ in range(2):
                trace.append("main")
                await fiber.yield_now()

    run(main)
    assert trace == ["main", "a0", "b0", "main", "a1", "b1", "a2", "b2"]


def test_yield_now_checks_when_it_resumes(run: Run) -> None:  # S9
    async def main() -> None:
        async with Switch() as switch:
            promise = switch.fork_promise(fiber.yield_now)
            await fiber.yield_now()
            switch.cancel()
        with pytest.raises(Cancelled):
            await promise

    run(main)


def test_an_operation_that_has_completed_returns_though_its_fiber_is_cancelled_before_it_runs(run: Run) -> None:  # S9
    async def main() -> None:
        for foreign in (False, True):
            stream: Stream[str] = Stream(1)
            promise, resolver = Promise[str].create()
            tasks: list[asyncio.Task[Any]] = []
            got: list[str] = []

            async def f(operation: Callable[[], Awaitable[str]]) -> None:
                task = asyncio.current_task()
                assert task is not None
                tasks.append(task)  # noqa: B023
                got.append(await operation())  # noqa: B023
                with pytest.raises(CancelledError):
                    await sleep(1000)
                got.append("cancelled")  # noqa: B023

            async with Switch() as switch:
                switch.fork(f, stream.take)
                switch.fork(f, lambda: promise)  # noqa: B023
                await turns()
                stream.add_nonblocking("item")
                resolver.resolve("value")
                if foreign:
                    for task in tasks:
                        task.cancel()
                else:
                    switch.cancel()
            assert got == ["item", "cancelled", "value", "cancelled"] or sorted(got) == sorted(
                ["item", "value", "cancelled", "cancelled"]
            )

    run(main)


def test_a_foreign_cancel_after_the_last_wait_does_not_undo_it(run: Run) -> None:  # S9 S30
    async def main() -> None:
        stream: Stream[str] = Stream(1)
        tasks: list[asyncio.Task[Any]] = []

        async def take() -> str:
            task = asyncio.current_task()
            assert task is not None
            tasks.append(task)
            return await stream.take()

        async with Switch() as switch:
            promise = switch.fork_promise(take)
            await turns()
            stream.add_nonblocking("item")
            tasks[0].cancel()
        assert await promise == "item"

    run(main)


def test_await_cancel_only_ends_by_cancellation(run: Run) -> None:  # S10
    trace: list[str] = []

    async def main() -> None:
        async def f() -> None:
            try:
                await fiber.await_cancel()
            except Cancelled:
                trace.append("cancelled")
                raise

        async with Switch() as switch:
            switch.fork(f)
            await turns(10)
            assert trace == []
            switch.cancel()

    run(main)
    assert trace == ["cancelled"]


def test_check_raises_and_is_cancelled_tells_except_inside_protect(run: Run) -> None:  # S11
    async def main() -> None:
        fiber.check()
        assert not fiber.is_cancelled()
        with CancelScope() as scope:
            scope.cancel()
            assert fiber.is_cancelled()
            for _ in range(2):
                with pytest.raises(Cancelled):
                    fiber.check()
            with protect():
                assert not fiber.is_cancelled()
                fiber.check()
                with CancelScope() as inner:
                    inner.cancel()
                    assert fiber.is_cancelled()
                    with pytest.raises(Cancelled):
                        fiber.check()
                assert not fiber.is_cancelled()
            assert fiber.is_cancelled()
        assert not fiber.is_cancelled()

    run(main)


def test_check_belongs_to_a_task() -> None:  # S11
    with pytest.raises(RuntimeError, match="fiber"):
        fiber.check()
    with pytest.raises(RuntimeError, match="fiber"):
        fiber.is_cancelled()


# Variables

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")
local: FiberLocal[str] = FiberLocal("local", "default")


def test_a_forked_fiber_inherits_variables_as_they_were_at_the_fork(run: Run) -> None:  # S12
    seen: list[tuple[str, str]] = []

    async def f() -> None:
        seen.append((variable.get(), local.get()))
        variable.set("changed inside")
        local.set("changed inside")
        await turns()
        assert (variable.get(), local.get()) == ("changed inside", "changed inside")

    async def main() -> None:
        assert local.label == "local"
        variable.set("at the fork")
        with local.bound("bound"):
            async with Switch() as switch:
                switch.fork(f)
                variable.set("after the fork")
                local.set("after the fork")
                switch.fork_daemon(f)
                await turns(5)
                promise = switch.fork_promise(f, context=contextvars.Context())
                await promise
            assert variable.get() == "after the fork"
        assert local.get() == "default"

    run(main)
    assert seen == [("at the fork", "bound"), ("after the fork", "after the fork"), ("default", "default")]


# Sequences


def test_a_producer_runs_only_until_its_next_yield(run: Run) -> None:  # S13
    trace: list[str] = []

    async def produce(yield_: Yield) -> None:
        for number in range(3):
            trace.append(f"produces {number}")
            await yield_(number)
        trace.append("ends")

    async def main() -> None:
        async with Switch() as switch:
            sequence = switch.fork_seq(produce)
            await turns(5)
            assert trace == []
            async for number in sequence:
                trace.append(f"takes {number}")
                await turns(5)
            with pytest.raises(StopAsyncIteration):
                await anext(sequence)

    run(main)
    assert trace == ["produces 0", "takes 0", "produces 1", "takes 1", "produces 2", "takes 2", "ends"]


@pytest.mark.parametrize("failure", [Broken("produced"), KeyError("k"), KeyboardInterrupt("produced"), Cancelled()])
def test_the_exception_of_a_producer_reaches_the_consumer(run: Run, failure: BaseException) -> None:  # S13
    async def produce(yield_: Yield) -> None:
        await yield_(1)
        raise failure

    async def main() -> None:
        async with Switch() as switch:
            sequence = switch.fork_seq(produce)
            assert await anext(sequence) == 1
            with pytest.raises(type(failure)) as caught:
                await anext(sequence)
            assert caught.value is failure
            with pytest.raises(StopAsyncIteration):
                await anext(sequence)

    run(main)


def test_the_exception_of_a_producer_whose_consumer_was_cancelled_is_there_for_the_next(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:  # S13
    async def main() -> None:
        promise, resolver = Promise[None].create()

        async def produce(_: Yield) -> None:
            await promise
            raise Broken("produced")

        async with Switch() as switch:
            sequence = switch.fork_seq(produce)
            with CancelScope() as scope:
                async with Switch() as taking:
                    taking.fork(anext, sequence)
                    await turns()
                    scope.cancel()
            resolver.resolve(None)
            await turns()
            with pytest.raises(Broken, match="produced"):
                await anext(sequence)

    run(main)
    assert caplog.records == []


@pytest.mark.parametrize("dropped", [False, True])
def test_the_exception_of_a_producer_that_nobody_takes_is_logged_when_the_switch_ends(
    run: Run, caplog: pytest.LogCaptureFixture, dropped: bool
) -> None:  # S13 S23
    async def produce(yield_: Yield) -> None:
        try:
            await yield_(1)
            await never()
        finally:
            raise Broken("produced")

    async def main() -> None:
        async with Switch() as switch:
            sequence: Any = switch.fork_seq(produce)
            assert await anext(sequence) == 1
            if dropped:
                del sequence
            else:
                with move_on_after(0):
                    await anext(sequence)
            await turns()
            assert caplog.records == []

    run(main)
    (record,) = caplog.records
    assert "'produce'" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "produced"


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
def test_a_producer_that_raises_stop_iteration_has_failed(run: Run, kind: type[Exception]) -> None:  # S13
    async def main() -> None:
        def produce(_: Yield) -> Any:
            raise kind

        async with Switch() as switch:
            with pytest.raises(RuntimeError, match=kind.__name__) as caught:
                await anext(switch.fork_seq(produce))
            assert isinstance(caught.value.__cause__, kind)

    run(main)


def test_a_cancelled_take_of_a_sequence_loses_no_item(run: Run) -> None:  # S13
    async def produce(yield_: Yield) -> None:
        for number in range(4):
            await turns(2)
            await yield_(number)

    async def main() -> None:
        for delay in range(8):
            got: list[int] = []
            async with Switch() as switch:
                sequence = switch.fork_seq(produce)

                async def take() -> None:
                    got.append(await anext(sequence))  # noqa: B023

                async with Switch() as taking:
                    taking.fork(take)
                    await turns(delay)
                    taking.cancel()
                got += [number async for number in sequence]
            assert got == [0, 1, 2, 3], delay

    run(main)


def test_a_take_whose_task_was_cancelled_makes_room_for_the_next(run: Run) -> None:  # S13 S30
    async def main() -> None:
        promise, resolver = Promise[None].create()

        async def produce(yield_: Yield) -> None:
            await promise
            await yield_("item")

        async with Switch() as switch:
            sequence = switch.fork_seq(produce)
            task = asyncio.ensure_future(anext(sequence))
            await turns()
            task.cancel()
            resolver.resolve(None)
            with timeout(10):
                assert await anext(sequence) == "item"
            assert task.cancelled()

    run(main)


def test_ending_the_switch_ends_the_producer(run: Run) -> None:  # S13
    trace: list[str] = []

    async def produce(yield_: Yield) -> None:
        try:
            while True:
                await yield_(1)
        finally:
            trace.append("producer ended")

    async def main() -> None:
        async with Switch() as switch:
            sequence = switch.fork_seq(produce)
            assert await anext(sequence) == 1
        assert trace == ["producer ended"]
        with pytest.raises(CancelledError):
            await anext(sequence)
        with pytest.raises(StopAsyncIteration):
            await anext(sequence)

    run(main)


def test_a_consumer_outside_hears_when_the_producer_is_cancelled_before_it_began(run: Run) -> None:  # S13
    async def produce(_: Yield) -> None:
        pytest.fail("was run")

    async def main() -> None:
        async with Switch() as outer, Switch() as switch:
            promise = outer.fork_promise(anext, switch.fork_seq(produce))
            outer.fork(switch.cancel)
            await turns()
        with pytest.raises(CancelledError):
            await promise

    run(main)


def test_taking_two_items_at_once_is_an_error(run: Run) -> None:  # S13
    async def produce(yield_: Yield) -> None:
        await turns(5)
        await yield_("item")

    async def main() -> None:
        async with Switch() as switch:
            sequence = switch.fork_seq(produce)
            promise = switch.fork_promise(anext, sequence)
            await turns()
            with pytest.raises(RuntimeError, match="two fibers"):
                await anext(sequence)
            assert await promise == "item"

    run(main)


def test_yielding_two_items_at_once_is_an_error(run: Run) -> None:  # S13
    async def produce(yield_: Yield) -> None:
        await fiber.both(lambda: yield_(1), lambda: yield_(2))

    async def main() -> None:
        async with Switch() as switch:
            sequence = switch.fork_seq(produce)
            assert await anext(sequence) == 1
            with pytest.raises(RuntimeError, match="two at once"):
                await anext(sequence)

    run(main)


def test_a_yield_after_the_producer_has_ended_is_an_error(run: Run) -> None:  # S13
    kept: list[Yield] = []

    async def produce(yield_: Yield) -> None:
        kept.append(yield_)

    async def main() -> None:
        async with Switch() as switch:
            assert [item async for item in switch.fork_seq(produce)] == []
            with pytest.raises(RuntimeError):
                await kept[0](1)

    run(main)


def test_a_yield_in_a_cancelled_context_raises_cancelled_again(run: Run) -> None:  # S13 S26
    trace: list[str] = []

    async def produce(yield_: Yield) -> None:
        for number in range(3):
            try:
                await yield_(number)
            except Cancelled:
                trace.append("cancelled")

    async def main() -> None:
        async with Switch() as switch:
            sequence = switch.fork_seq(produce)
            assert await anext(sequence) == 0

    run(main)
    assert trace == ["cancelled"] * 3


def test_a_producer_may_give_up_waiting_and_go_on(run: Run) -> None:  # S13 S31
    trace: list[str] = []

    async def produce(yield_: Yield) -> None:
        for number in range(3):
            with move_on_after(0.001) as scope:
                await yield_(number)
            trace.append(f"{number}: {scope.cancelled}")

    async def main() -> None:
        async with Switch() as switch:
            sequence = switch.fork_seq(produce)
            assert await anext(sequence) == 0
            while not trace:
                await fiber.yield_now()
            assert [number async for number in sequence] == [1, 2]

    run(main)
    assert trace[0] == "0: True"


@pytest.mark.parametrize("collected", [False, True])
def test_dropping_the_iterator_half_way_cancels_the_producer(run: Run, collected: bool) -> None:  # S13
    trace: list[str] = []

    async def produce(yield_: Yield) -> None:
        try:
            while True:
                await yield_(1)
        except Cancelled:
            trace.append("cancelled")
            raise

    async def main() -> None:
        async with Switch() as switch:
            sequence: Any = switch.fork_seq(produce)
            async for _ in sequence:
                break
            if collected:
                cycle: list[Any] = [sequence]
                cycle.append(cycle)
                del cycle
            del sequence
            if collected:
                gc.collect()
            await turns()
            assert trace == ["cancelled"]
            assert not fiber.is_cancelled()

    run(main)


def test_an_iterator_may_be_dropped_in_another_thread(run: Run) -> None:  # S13
    async def main() -> None:
        ended, resolver = Promise[str].create()

        async def produce(yield_: Yield) -> None:
            try:
                while True:
                    await yield_(1)
            finally:
                resolver.resolve(threading.current_thread().name)

        async with Switch() as switch:
            held: list[Any] = [switch.fork_seq(produce)]
            assert await anext(held[0]) == 1
            thread = threading.Thread(target=held.clear)
            thread.start()
            thread.join()
            with timeout(10):
                assert await ended == threading.current_thread().name

    run(main)


def test_dropping_an_iterator_that_was_never_used_starts_nothing(run: Run) -> None:  # S13
    async def main() -> None:
        async with Switch() as switch:
            iterator = weakref.ref(switch.fork_seq(lambda _: pytest.fail("was run")))
            assert iterator() is None
            await turns()

    run(main)


def test_closing_an_iterator_ends_it_cleanly(run: Run) -> None:  # S13
    trace: list[str] = []

    async def produce(yield_: Yield) -> None:
        trace.append("begins")
        try:
            while True:
                await yield_(1)
        finally:
            trace.append("ends")

    async def main() -> None:
        async with Switch() as switch:
            sequence: Any = switch.fork_seq(produce)
            assert await anext(sequence) == 1
            await sequence.aclose()
            await sequence.aclose()
            assert [item async for item in sequence] == []
            assert trace == ["begins", "ends"]
            unused: Any = switch.fork_seq(produce)
            await unused.aclose()
            assert [item async for item in unused] == []
            assert trace == ["begins", "ends"]
            left_over: Any = switch.fork_seq(produce)
            async with Switch() as taking:
                taking.fork(anext, left_over)
                await fiber.yield_now()
                taking.cancel()
            await turns()
            assert trace == ["begins", "ends", "begins"]
            await left_over.aclose()
            assert [item async for item in left_over] == []

    run(main)


# Failing at the start


def test_wrong_arguments_fail_the_fiber_with_a_traceback_that_points_at_the_call(run: Run) -> None:  # S14
    async def f(argument: int) -> None:
        pytest.fail("was run")

    async def main() -> None:
        for fork in ("fork", "fork_daemon"):
            with pytest.raises(TypeError, match="argument") as caught:
                async with Switch() as switch:
                    getattr(switch, fork)(f)
                    await never()
            assert traceback.extract_tb(caught.value.__traceback__)[-1].line == "result = f(*args)"
        async with Switch() as switch:
            promise = switch.fork_promise(f, 1, 2)
        with pytest.raises(TypeError, match="positional"):
            await promise
        with pytest.raises(TypeError, match="argument"):
            await fiber.both(f, never)  # type: ignore[arg-type]

    run(main)
