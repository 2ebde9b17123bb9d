"""Cancelled, protect, deadlines, and what asyncio's own cancellation does to all that (S26 to S32)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import threading
import weakref
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from domains import (
    Cancelled,
    CancelScope,
    Mutex,
    Promise,
    Semaphore,
    Stream,
    Switch,
    fiber,
    move_on_after,
    protect,
    run_in_thread,
    timeout,
)
from domains.scheduler.cancel import current_fiber
from domains.scheduler.clock import sleep
from domains.scheduler.suspend import Suspension, suspend

from .conftest import Run


class Broken(Exception):
    """A failure of the tests' own."""


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await fiber.yield_now()


async def never() -> None:
    await fiber.await_cancel()


def this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def soon(f: Callable[..., object], *args: Any) -> None:
    """Call f in the next turn of the loop, outside of any fiber."""
    asyncio.get_running_loop().call_soon(f, *args)


# Level-triggered


def test_after_being_swallowed_cancelled_is_raised_by_each_further_operation(run: Run) -> None:  # S26
    promise = Promise.resolved(1)
    stream: Stream[int] = Stream(1)
    operations: list[Callable[[], Awaitable[Any]]] = [
        fiber.yield_now,
        never,
        lambda: sleep(0),
        lambda: sleep(1),
        lambda: promise,
        lambda: stream.add(1),
        lambda: fiber.all([]),
        lambda: Mutex().lock(),
        lambda: Semaphore(1).acquire(),
    ]
    raised: list[int] = []

    async def main() -> None:
        async with Switch() as switch:

            async def work() -> None:
                for _ in range(2):
                    for number, operation in enumerate(operations):
                        try:
                            await operation()
                        except Cancelled:
                            raised.append(number)

            switch.cancel()
            await work()
        await fiber.yield_now()

    run(main)
    assert raised == [*range(len(operations))] * 2


def test_a_swallowed_cancellation_does_not_reach_outside_of_its_owner(run: Run) -> None:  # S26
    async def main() -> None:
        with CancelScope() as scope:
            scope.cancel()
            with contextlib.suppress(Cancelled):
                await never()
        assert not scope.cancelled
        await turns()

    run(main)


def test_foreign_code_is_interrupted_once_for_each_cancellation(run: Run) -> None:  # S26
    interruptions: list[str] = []

    async def main() -> None:
        async with Switch() as switch:

            async def foreign() -> None:
                for name in ("first", "second", "third"):
                    try:
                        await asyncio.sleep(0.01)
                    except CancelledError:
                        interruptions.append(name)
                    with move_on_after(0):
                        await never()

            with CancelScope() as inner:
                switch.fork(foreign)
                switch.fork(turns)
                await turns()
                inner.cancel()
                switch.cancel()

    run(main)
    assert interruptions == ["first"]


def test_foreign_code_that_hears_late_hears_all_the_same(run: Run) -> None:  # S26
    trace: list[str] = []

    async def main() -> None:
        async with Switch() as switch:

            async def completes_first() -> None:
                await asyncio.sleep(0)
                trace.append("completed")
                await asyncio.sleep(1000)

            async def is_busy_in_ours() -> None:
                await promise
                trace.append("resumed")
                await asyncio.sleep(1000)

            promise, resolver = Promise[None].create()
            switch.fork(completes_first)
            switch.fork(is_busy_in_ours)
            await fiber.yield_now()
            resolver.resolve(None)
            switch.cancel()

    run(main)
    assert trace == ["completed", "resumed"]


def test_foreign_code_that_completes_as_it_is_cancelled_gives_its_result(run: Run) -> None:  # S9 S26
    got: list[str] = []

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def wait() -> None:
            got.append(await future)
            try:
                await asyncio.sleep(1000)
            finally:
                got.append("interrupted")

        async with Switch() as switch:
            switch.fork(wait)
            await fiber.yield_now()
            switch.cancel()
            future.set_result("item")

    run(main)
    assert got == ["item", "interrupted"]


def test_a_cleanup_after_a_cancellation_in_foreign_code_is_not_interrupted_again(run: Run) -> None:  # S26 S27
    trace: list[str] = []

    async def main() -> None:
        async with Switch() as switch:

            async def foreign() -> None:
                try:
                    await asyncio.sleep(1000)
                finally:
                    with protect():
                        with move_on_after(0):
                            await never()
                        await turns()
                    await asyncio.sleep(0.01)
                    trace.append("cleaned up")

            switch.fork(foreign)
            await turns()
            switch.cancel()

    run(main)
    assert trace == ["cleaned up"]


# protect


def test_nothing_arrives_inside_protect_nor_on_leaving_but_at_the_next_operation(run: Run) -> None:  # S27
    trace: list[str] = []

    async def main() -> None:
        with CancelScope() as scope:
            with protect():
                scope.cancel()
                await turns()
                await asyncio.sleep(0.001)
                async with Switch() as switch:
                    switch.fork(turns)
                trace.append("inside")
            trace.append("left")
            try:
                fiber.check()
            finally:
                trace.append("checked")
        assert scope.cancelled

    run(main)
    assert trace == ["inside", "left", "checked"]


def test_foreign_code_after_protect_is_interrupted(run: Run) -> None:  # S27
    async def main() -> None:
        with CancelScope() as scope:
            with protect():
                scope.cancel()
                await turns()
            with pytest.raises(CancelledError):
                await asyncio.sleep(1000)
            assert this_task().cancelling() == 1
            await asyncio.sleep(0)
        assert this_task().cancelling() == 0

    run(main)


def test_what_is_cancelled_inside_protect_works(run: Run) -> None:  # S27
    async def main() -> None:
        with CancelScope() as scope:
            scope.cancel()
            with protect():
                with pytest.raises(TimeoutError), timeout(0.001):
                    await never()
                async with Switch() as switch:
                    switch.fork(never)
                    switch.cancel()
                    await asyncio.sleep(1000)
                with protect():
                    with move_on_after(0.001) as inner, protect():
                        await sleep(0.002)
                    assert not inner.cancelled
                await turns()
                assert not fiber.is_cancelled()
                assert this_task().cancelling() == 0
            assert fiber.is_cancelled()
        assert not fiber.is_cancelled()

    run(main)


def test_protect_inside_a_deadline_delays_it_and_a_deadline_inside_protect_works(run_timed: Run) -> None:  # S27 S31
    async def main() -> None:
        trace: list[str] = []
        with pytest.raises(TimeoutError, match=r"0\.001"):
            with timeout(0.001):
                with protect():
                    with pytest.raises(TimeoutError, match=r"0\.002"), timeout(0.002):
                        await sleep(1000)
                    trace.append("inner")
                trace.append("left protect")
                await sleep(1000)
        assert trace == ["inner", "left protect"]

    run_timed(main)


def test_a_foreign_cancel_is_not_kept_out_by_protect(run: Run) -> None:  # S27 S30
    async def main() -> None:
        with protect():
            soon(this_task().cancel)
            with pytest.raises(CancelledError):
                await never()
        assert this_task().uncancel() == 0

    run(main)


def test_protect_keeps_its_accounts_when_it_is_entered_during_an_unwinding(run: Run) -> None:  # S27
    async def main() -> None:
        task = this_task()
        with CancelScope() as scope:
            soon(scope.cancel)
            try:
                await asyncio.sleep(1000)
            finally:
                assert task.cancelling() == 1
                with protect():
                    with CancelScope() as inner:
                        soon(inner.cancel)
                        await asyncio.sleep(1000)
                    assert inner.cancelled
                    assert task.cancelling() == 1
                    async with asyncio.timeout(1000):
                        await asyncio.sleep(0)
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0):
                            await never()
                assert task.cancelling() == 1
        assert scope.cancelled
        assert task.cancelling() == 0

    run(main)


# Reasons and order


def test_the_reason_is_the_exception_that_began_it_and_a_second_one_changes_nothing(run: Run) -> None:  # S28
    first, second = Broken("first"), Broken("second")

    async def main() -> None:
        async with Switch() as outer:
            with CancelScope() as scope:
                scope.cancel(first)
                scope.cancel(second)
                for _ in range(2):
                    with pytest.raises(Cancelled) as caught:
                        await never()
                    assert caught.value.reason is first
                outer.cancel()
                with pytest.raises(Cancelled) as caught:
                    fiber.check()
                assert caught.value.reason is first
                await never()
            with pytest.raises(Cancelled) as caught:
                await never()
            assert caught.value.reason is None
        assert str(Cancelled(first)) == "cancelled because of Broken: first"
        assert str(Cancelled(Broken())) == "cancelled because of Broken"
        assert str(Cancelled()) == "cancelled"

    run(main)


def test_a_scope_may_be_cancelled_before_it_is_entered(run: Run) -> None:  # S28
    first = Broken()

    async def main() -> None:
        scope = CancelScope()
        scope.cancel(first)
        scope.cancel(Broken("second"))
        with scope:
            with pytest.raises(Cancelled) as caught:
                fiber.check()
            assert caught.value.reason is first
            await never()
        assert scope.cancelled
        scope.cancel()
        fiber.check()

    run(main)


def test_fibers_are_resumed_in_the_order_in_which_they_were_suspended(run: Run) -> None:  # S29
    suspended: list[int] = []
    resumed: list[int] = []

    async def wait(number: int, delay: int) -> None:
        await turns(delay)
        suspended.append(number)
        try:
            await never()
        finally:
            resumed.append(number)

    async def nested(number: int) -> None:
        async with Switch() as switch:
            for offset in range(3):
                switch.fork(wait, 10 * number + offset, (7 * number + 5 * offset) % 11)
            with timeout(1000):
                await wait(10 * number + 9, (3 * number) % 11)

    async def main() -> None:
        with CancelScope() as scope:
            async with Switch() as switch:
                for number in range(10):
                    switch.fork(nested, number)
                    switch.fork_daemon(wait, 1000 + number, (5 * number) % 11)
                await turns(20)
                scope.cancel()

    run(main)
    assert len(resumed) == 50
    assert resumed == suspended


def test_foreign_waiters_are_interrupted_in_the_order_of_their_tree(run: Run) -> None:  # S29
    trace: list[str] = []

    async def foreign(name: str) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            trace.append(name)

    async def in_a_scope(name: str) -> None:
        with timeout(1000):
            await foreign(name)

    async def main() -> None:
        async with Switch() as switch:
            for name in "abc":
                switch.fork(in_a_scope, name)
            switch.fork(foreign, "directly")
            await turns()
            switch.cancel()

    run(main)
    assert trace == ["directly", "a", "b", "c"]


# Foreign cancellation


@pytest.mark.parametrize("waiting", [never, lambda: asyncio.sleep(1000)])
def test_a_foreign_cancel_of_a_fiber_is_its_failure(run: Run, waiting: Callable[[], Awaitable[None]]) -> None:  # S30
    trace: list[str] = []
    tasks: list[asyncio.Task[Any]] = []

    async def work() -> None:
        tasks.append(this_task())
        await waiting()

    async def other() -> None:
        try:
            await never()
        except Cancelled as cancelled:
            trace.append(type(cancelled.reason).__name__)
            raise

    async def main() -> None:
        with pytest.raises(CancelledError) as caught:
            async with Switch() as switch:
                switch.fork(work)
                switch.fork(other)
                await turns()
                tasks[0].cancel("the message")
        assert not isinstance(caught.value, Cancelled)
        assert caught.value.args == ("the message",)
        await turns()

    run(main)
    assert trace == ["CancelledError"]


@pytest.mark.parametrize("message", [None, "early"])
def test_a_foreign_cancel_of_a_fiber_that_has_not_begun_is_its_failure(run: Run, message: str | None) -> None:  # S30
    async def main() -> None:
        loop_tasks: set[asyncio.Task[Any]] = asyncio.all_tasks()
        with pytest.raises(CancelledError) as caught:
            async with Switch() as switch:
                switch.fork(lambda: pytest.fail("was run"))
                (task,) = asyncio.all_tasks() - loop_tasks
                assert task.cancel() if message is None else task.cancel(message)
                assert task.cancel("again")
                await never()
        assert caught.value.args == (() if message is None else (message,))

    run(main)


def test_a_foreign_cancel_of_a_promised_fiber_goes_to_its_promise(run: Run) -> None:  # S30 S38
    async def main() -> None:
        before = asyncio.all_tasks()
        async with Switch() as switch:
            promise = switch.fork_promise(never)
            (task,) = asyncio.all_tasks() - before
            await turns()
            task.cancel()
            with pytest.raises(CancelledError):
                await promise
            fiber.check()
            switch.check()

    run(main)


def test_a_foreign_cancel_of_the_body_ends_the_fibers_and_goes_on_outwards(run: Run) -> None:  # S30
    trace: list[str] = []

    async def work() -> None:
        try:
            await never()
        finally:
            with protect():
                await turns(5)
            trace.append("fiber ended")

    async def plain() -> None:
        async with Switch() as switch:
            switch.fork(work)
            if in_body:
                await never()

    async def main() -> None:
        for _ in range(2):
            task = asyncio.ensure_future(plain())
            await turns()
            task.cancel()
            with pytest.raises(CancelledError):
                await task
            assert task.cancelled()
            nonlocal in_body
            in_body = False

    in_body = True
    run(main)
    assert trace == ["fiber ended", "fiber ended"]


@pytest.mark.parametrize("when", ["before the join", "during the join"])
def test_a_switch_that_ends_quietly_does_not_swallow_a_foreign_cancel(run: Run, when: str) -> None:  # S20 S30
    trace: list[str] = []

    async def unwinds_slowly() -> None:
        try:
            await never()
        finally:
            with protect():
                await turns(10)

    async def plain() -> None:
        async with Switch() as switch:
            switch.fork(unwinds_slowly)
            await turns()
            switch.cancel()
            with contextlib.suppress(Cancelled):
                await never()
            if when == "before the join":
                await asyncio.sleep(1000)
        trace.append("went on")

    async def main() -> None:
        task = asyncio.ensure_future(plain())
        await turns(8)
        assert task.cancel()
        with pytest.raises(CancelledError):
            await task

    run(main)
    assert trace == []


def test_a_scope_that_ends_quietly_does_not_swallow_a_foreign_cancel(run: Run) -> None:  # S30 S31
    trace: list[str] = []

    async def plain() -> None:
        with CancelScope() as scope:
            scope.cancel()
            try:
                await never()
            finally:
                with protect():
                    await sleep(1000)
        trace.append("went on")

    async def main() -> None:
        task = asyncio.ensure_future(plain())
        await turns()
        task.cancel()
        with pytest.raises(CancelledError):
            await task

    run(main)
    assert trace == []


def test_many_foreign_cancels_of_a_body_that_waits_for_its_fibers_are_one_failure(run: Run) -> None:  # S30
    async def unwinds_slowly() -> None:
        try:
            await never()
        finally:
            with protect():
                await turns(10)

    async def plain() -> None:
        async with Switch() as switch:
            switch.fork(unwinds_slowly)

    async def main() -> None:
        task = asyncio.ensure_future(plain())
        await turns()
        for number in range(3):
            task.cancel(str(number))
            await turns(2)
            assert not task.done()
        with pytest.raises(CancelledError) as caught:
            await task
        assert caught.value.args in {("0",), ("2",)}

    run(main)


def test_asyncios_timeout_around_ours_and_inside_ours(run: Run) -> None:  # S30 S31
    async def main() -> None:
        task = this_task()
        for ours in (timeout(1000), move_on_after(1000), CancelScope(), protect()):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    with ours:  # type: ignore[attr-defined]
                        await never()
            assert task.cancelling() == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001), Switch() as switch:
                switch.fork(never)
        with pytest.raises(TimeoutError, match="it took longer"), timeout(0.001):
            async with asyncio.timeout(1000):
                await asyncio.sleep(1000)
        assert task.cancelling() == 0
        with timeout(1000):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await never()
            await turns()
        assert task.cancelling() == 0

    run(main)


def test_asyncios_timeout_and_ours_in_the_same_turn(run: Run) -> None:  # S30 S31
    async def main() -> None:
        task = this_task()
        for foreign_outside in (True, False):
            for ours_first in (True, False):
                for waiting in (never, lambda: asyncio.sleep(1000)):
                    scope = CancelScope()
                    theirs = asyncio.timeout(None)
                    expire = (lambda: theirs.reschedule(-1), scope.cancel)  # noqa: B023
                    for f in reversed(expire) if ours_first else expire:
                        soon(f)
                    try:
                        if foreign_outside:
                            async with theirs:
                                with scope:
                                    await waiting()
                        else:
                            with scope:
                                async with theirs:
                                    await waiting()
                    except TimeoutError:
                        assert theirs.expired()
                    assert scope.cancelled or theirs.expired()
                    await turns()
                    await asyncio.sleep(0)
                    assert task.cancelling() == 0

    run(main)


def test_an_operation_that_has_completed_beside_asyncios_timeout_leaves_no_cancel_behind(run: Run) -> None:  # S9 S30
    async def main() -> None:
        stream: Stream[int] = Stream(1)
        async with asyncio.timeout(1000) as theirs:
            soon(stream.add_nonblocking, 1)
            soon(this_task().cancel)
            theirs._state = type(theirs._state).EXPIRING  # type: ignore[attr-defined] # as if it had been that
            assert await stream.take() == 1
        assert this_task().cancelling() == 0
        await turns()
        await asyncio.sleep(0.001)

    run(main)


async def cancel_as_an_item_comes(task: asyncio.Task[None], stream: Stream[int]) -> None:
    """In the turn in which its take completes; the task then hears of it, whatever it waits for next."""
    stream.add_nonblocking(1)
    task.cancel()
    with pytest.raises(CancelledError):
        async with asyncio.timeout(10):
            await task


def test_a_foreign_cancel_that_waits_to_be_raised_again_is_no_old_one(run: Run) -> None:  # S7 S9 S30
    async def main() -> None:
        for scope in (CancelScope(), None):
            stream: Stream[int] = Stream(1)
            got: list[int] = []

            async def plain() -> None:
                got.append(await stream.take())  # noqa: B023 - and now the cancel is yet to come
                if scope is None:  # noqa: B023
                    got.extend(await fiber.n_any([lambda: 2]))  # noqa: B023
                else:
                    with scope:  # noqa: B023
                        scope.cancel()  # noqa: B023
                        await asyncio.sleep(1000)
                await asyncio.sleep(1000)

            task = asyncio.ensure_future(plain())
            await turns()
            await cancel_as_an_item_comes(task, stream)
            assert got == ([1, 2] if scope is None else [1])

    run(main)


@pytest.mark.parametrize("shield", ["protect", "switch", "hook"])
def test_a_foreign_cancel_that_waits_in_a_protected_block_is_raised_after_it(run: Run, shield: str) -> None:  # S9 S30
    async def main() -> None:
        stream: Stream[int] = Stream(1)
        got: list[int] = []
        scope = CancelScope()

        async def take() -> None:
            got.append(await stream.take())

        async def plain() -> None:
            with scope:
                async with Switch() as switch:
                    if shield == "hook":
                        switch.on_release(take)
                    try:
                        await asyncio.sleep(1000)
                    finally:
                        if shield == "protect":
                            with protect():
                                await take()
                        elif shield == "switch":
                            async with Switch(protected=True):
                                await take()
            got.append(this_task().cancelling())
            await asyncio.sleep(1000)

        task = asyncio.ensure_future(plain())
        await turns()
        scope.cancel()
        await turns()
        await cancel_as_an_item_comes(task, stream)
        assert got == [1, 1]

    run(main)


def test_a_task_group_around_ours_and_inside_ours(run: Run) -> None:  # S30
    async def fail() -> None:
        await asyncio.sleep(0)
        raise Broken

    async def main() -> None:
        task = this_task()
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                async with Switch() as switch:
                    switch.fork(never)
                    await never()
        assert task.cancelling() == 0
        with pytest.raises(ExceptionGroup):
            async with Switch() as switch:
                switch.fork(never)
                async with asyncio.TaskGroup() as group:
                    group.create_task(fail())
                    await never()
        assert task.cancelling() == 0
        with move_on_after(0.001) as scope:
            async with asyncio.TaskGroup() as group:
                group.create_task(never())  # type: ignore[arg-type]
                await asyncio.sleep(1000)
        assert scope.cancelled
        assert task.cancelling() == 0

    run(main)


def test_operations_work_in_plain_tasks_which_are_fibers_of_their_own(run: Run) -> None:  # S30
    async def main() -> None:
        stream: Stream[int] = Stream(0)
        task = asyncio.ensure_future(stream.take())
        await turns()
        await stream.add(1)
        assert await task == 1
        with CancelScope() as scope:
            task = asyncio.ensure_future(stream.take())
            scope.cancel()
            await asyncio.sleep(0)
            assert not task.done()  # not of the scope
        task.cancel()
        with pytest.raises(CancelledError):
            await task
        assert not stream.add_nonblocking(2)
        inner = await asyncio.gather(*(asyncio.ensure_future(fiber.pair(lambda: 1, lambda: 2)) for _ in range(3)))
        assert inner == [(1, 2)] * 3

    run(main)


def test_a_plain_task_that_has_ended_leaves_no_fiber_and_no_context(run: Run) -> None:  # S30
    refs: list[weakref.ref[Any]] = []

    async def plain() -> None:
        await turns()
        with timeout(1000):
            await turns()
        refs.append(weakref.ref(current_fiber().context))
        refs.append(weakref.ref(this_task()))

    async def main() -> None:
        gc.collect()
        gc.disable()
        try:
            await asyncio.ensure_future(plain())
            await turns()
            assert [ref() for ref in refs] == [None, None]
        finally:
            gc.enable()

    run(main)


# Deadlines


def test_a_timeout_raises_for_its_own_deadline_only(run_timed: Run) -> None:  # S31
    own = TimeoutError("from inside")

    async def main() -> None:
        with pytest.raises(TimeoutError, match=r"^it took longer than 0\.001 s$") as caught, timeout(0.001):
            await never()
        assert isinstance(caught.value.__cause__, Cancelled)
        with pytest.raises(TimeoutError, match=r"^the tea took longer than 0 s$"), timeout(0, what="the tea"):
            await never()
        with pytest.raises(TimeoutError) as caught, timeout(1000):
            raise own
        assert caught.value is own
        with pytest.raises(Broken), timeout(0):
            raise Broken
        with pytest.raises(TimeoutError, match=r"0\.001") as caught, timeout(0.001), timeout(1000):
            await never()
        with timeout(1000):
            await turns()
        with timeout(0.001) as limit, contextlib.suppress(Cancelled):
            await never()
        assert not limit.cancelled

    run_timed(main)


@pytest.mark.parametrize("outer_first", [True, False])
def test_of_nested_timeouts_the_one_whose_deadline_came_first_raises(run_timed: Run, outer_first: bool) -> None:  # S31
    outer, inner = (0.001, 0.003) if outer_first else (0.003, 0.001)

    async def main() -> None:
        with pytest.raises(TimeoutError, match=r"0\.001"), timeout(outer), timeout(inner):
            try:
                await sleep(1000)
            finally:
                with protect():
                    await sleep(0.01)  # meanwhile the other one comes as well

    run_timed(main)


def test_equal_deadlines_count_in_the_order_in_which_they_were_set(run_timed: Run) -> None:  # S31
    async def main() -> None:
        with move_on_after(0.001) as outer, move_on_after(0.001) as inner:
            await never()
        assert outer.cancelled
        assert not inner.cancelled

    run_timed(main)


def test_a_timeout_of_zero_raises_at_the_first_operation(run_timed: Run) -> None:  # S31
    trace: list[str] = []

    async def main() -> None:
        with pytest.raises(TimeoutError), timeout(0):
            trace.append("begun")
            await fiber.yield_now()
            trace.append("went on")
        with timeout(0):
            pass
        with pytest.raises(TimeoutError), timeout(0):
            await asyncio.sleep(1000)

    run_timed(main)
    assert trace == ["begun"]


@pytest.mark.parametrize("kind", [timeout, move_on_after])
@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan, -math.inf, -(10**400), Decimal("NaN")])
def test_a_negative_limit_or_nan_is_refused(kind: Callable[[Any], object], seconds: Any) -> None:  # S31
    with pytest.raises(ValueError, match="seconds"):
        kind(seconds)


@pytest.mark.parametrize("kind", [timeout, move_on_after])
@pytest.mark.parametrize("seconds", ["1", b"1", 1j])
def test_a_limit_that_is_no_real_number_is_refused(kind: Callable[[Any], object], seconds: Any) -> None:  # S31
    with pytest.raises(TypeError):
        kind(seconds)


def test_a_limit_is_any_real_number(run_timed: Run) -> None:  # S31
    async def main() -> None:
        seconds: Any
        for seconds in (Decimal("0.001"), Fraction(1, 1000)):
            with pytest.raises(TimeoutError, match=f"took longer than {seconds} s"), timeout(seconds):
                await never()
        with timeout(10**400):
            await turns()

    run_timed(main)


@pytest.mark.parametrize("kind", [timeout, move_on_after])
def test_a_limit_that_fails_as_it_is_set_leaves_its_block(
    run: Run, kind: Callable[[float], move_on_after], monkeypatch: pytest.MonkeyPatch
) -> None:  # S15 S31
    trace: list[str] = []

    def fail(*_: object) -> None:
        raise Broken

    async def main() -> None:
        scope = kind(1)
        with pytest.raises(Broken):
            async with Switch() as switch:
                switch.on_release(trace.append, "released")
                with monkeypatch.context() as patched:
                    patched.setattr("domains.scheduler.cancel.set_timer", fail)
                    with scope:
                        trace.append("entered")
        scope.cancel()
        await turns()

    run(main)
    assert trace == ["released"]


def test_no_limit_is_none_or_infinity(run_timed: Run) -> None:  # S31
    async def main() -> None:
        for seconds in (None, math.inf):
            with timeout(seconds), move_on_after(seconds) as scope:
                await turns()
            assert not scope.cancelled

    run_timed(main)


def test_move_on_after_tells_whether_it_cut_the_block_short(run_timed: Run) -> None:  # S31
    async def main() -> None:
        with move_on_after(0.001) as scope:
            assert not scope.cancelled
            await never()
        assert scope.cancelled
        with move_on_after(1000) as scope:
            pass
        assert not scope.cancelled
        with CancelScope() as outer, move_on_after(1000) as scope:
            outer.cancel()
            await never()
        assert outer.cancelled
        assert not scope.cancelled

    run_timed(main)


def test_a_timeout_that_is_cancelled_by_hand_ends_quietly(run: Run) -> None:  # S31
    async def main() -> None:
        for reason in (None, Broken(), TimeoutError("another one's")):
            with timeout(1000) as scope:
                scope.cancel(reason)
                await never()
            assert scope.cancelled

    run(main)


def test_a_timeout_around_a_switch_ends_all_fibers_before_it_raises(run_timed: Run) -> None:  # S31
    begun: list[str] = []
    trace: list[str] = []

    async def work() -> None:
        begun.append("begun")  # on a busy machine the time may be over before any fiber runs
        try:
            await never()
        finally:
            with protect():
                await turns(5)
            trace.append("ended")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            with timeout(0.001):
                async with Switch() as switch:
                    switch.fork(work)
                    switch.fork_daemon(work)
        assert trace == ["ended"] * len(begun)

    run_timed(main)


def test_a_timeout_leaves_no_cycle(run: Run) -> None:  # S31
    refs: list[weakref.ref[Any]] = []

    async def use() -> None:
        in_this_frame = Broken()  # which the traceback holds
        refs.append(weakref.ref(in_this_frame))
        with timeout(0.001) as scope:
            refs.append(weakref.ref(current_fiber().context))
            try:
                await asyncio.sleep(1000)
            finally:
                assert not scope.cancelled

    async def main() -> None:
        gc.collect()
        gc.disable()
        try:
            with contextlib.suppress(TimeoutError):
                await use()
            await turns()
            assert len(refs) == 2
            assert [ref() for ref in refs] == [None, None]
        finally:
            gc.enable()

    run(main)


def test_a_scope_is_not_cancelled_from_another_thread(run: Run) -> None:
    async def main() -> None:
        with CancelScope() as scope:
            with pytest.raises(RuntimeError, match="another event loop or thread"):
                await run_in_thread(scope.cancel)
            fiber.check()
        assert not scope.cancelled
        await run_in_thread(scope.cancel)  # it has ended

    run(main)


def test_cancelling_a_scope_whose_task_was_destroyed_has_no_effect(run: Run) -> None:
    async def main() -> None:
        scope = CancelScope()

        async def wait() -> None:
            with scope:
                await asyncio.Event().wait()

        task: Any = asyncio.create_task(wait())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="must be left in the fiber"):
            task.get_coro().close()
        task._log_destroy_pending = False
        gone = weakref.ref(task)
        del task
        gc.collect()
        assert gone() is None
        scope.cancel()
        assert not scope.cancelled

    run(main)


def test_a_scope_is_used_once_and_left_where_it_was_entered(run: Run) -> None:  # S31
    async def main() -> None:
        for scope in (CancelScope(), timeout(1), move_on_after(1), protect()):
            with scope:  # type: ignore[attr-defined]
                pass
            with pytest.raises(RuntimeError, match="entered before"):
                scope.__enter__()  # type: ignore[attr-defined]
        outer, inner = protect(), CancelScope()
        outer.__enter__()
        inner.__enter__()
        with pytest.raises(RuntimeError, match="must be left in the fiber that entered it"):
            outer.__exit__(None, None, None)
        async with Switch() as switch:
            with pytest.raises(RuntimeError, match="must be left"):
                inner.__exit__(None, None, None)
            promise = switch.fork_promise(inner.__exit__, None, None, None)
            with pytest.raises(RuntimeError, match="must be left"):
                await promise
        inner.__exit__(None, None, None)
        outer.__exit__(None, None, None)

    run(main)


def test_a_scope_needs_a_fiber() -> None:  # S31
    with pytest.raises(RuntimeError):
        CancelScope().__enter__()


# Once and only once


def test_a_wait_ends_once_whoever_is_first(run: Run) -> None:  # S32
    ends: dict[str, Callable[[Suspension[str]], object]] = {
        "resumed": lambda suspension: suspension.resume("resumed"),
        "thrown": lambda suspension: suspension.throw(Broken()),
        "cancelled": lambda suspension: suspension.fiber.context.cancel(None),
        "interrupted": lambda suspension: suspension.fiber.task().cancel(),
    }
    withdrawn: list[Suspension[str]] = []
    outcomes: list[str] = []

    async def wait() -> None:
        def begin(suspension: Suspension[str]) -> Callable[[Suspension[str]], None]:
            soon(first, suspension)
            soon(second, suspension)
            return withdrawn.append

        first, second = ends[one], ends[other]
        with contextlib.suppress(CancelledError):
            try:
                outcomes.append(await suspend(begin, "test"))
            except Broken:
                outcomes.append("thrown")
            except Cancelled:
                outcomes.append("cancelled")
                raise
            except CancelledError:
                outcomes.append("interrupted")
                raise
            await turns()

    async def main() -> None:
        nonlocal one, other
        for one in ends:
            for other in ends:
                withdrawn.clear()
                outcomes.clear()
                task = asyncio.ensure_future(wait())
                with contextlib.suppress(CancelledError):
                    await task
                assert outcomes == [one], (one, other)
                assert len(withdrawn) == (one in ("cancelled", "interrupted"))

    one = other = ""
    run(main)


def test_a_wait_that_is_resumed_as_it_begins_does_not_switch(run: Run) -> None:  # S32
    trace: list[str] = []

    async def main() -> None:
        async with Switch() as switch:
            switch.fork(trace.append, "other")

            def begin(suspension: Suspension[str]) -> None:
                assert suspension.is_waiting
                assert suspension.resume("at once")
                assert not suspension.resume("twice")
                assert not suspension.is_waiting
                assert not suspension.is_cancellable

            trace.append(await suspend(begin, "test"))

    run(main)
    assert trace == ["at once", "other"]


def test_a_protected_wait_is_ended_by_what_it_waits_for_and_hears_afterwards(run: Run) -> None:  # S27 S32
    async def main() -> None:
        with CancelScope() as scope:
            waiting: list[Suspension[str]] = []
            soon(scope.cancel)
            asyncio.get_running_loop().call_later(0.001, lambda: waiting[0].resume("done"))
            assert await suspend(waiting.append, "test", protected=True) == "done"
            with pytest.raises(CancelledError):
                await asyncio.sleep(1000)

    run(main)


def test_nothing_of_a_switch_runs_after_it_has_ended(run: Run) -> None:  # S32
    trace: list[str] = []
    ended = False

    async def main() -> None:
        nonlocal ended
        promise, resolver = Promise[None].create()

        async def work() -> None:
            try:
                await promise
            finally:
                assert not ended
                trace.append("ran")

        async with Switch() as switch:
            for _ in range(5):
                switch.fork(work)
                switch.fork(asyncio.sleep, 0)
            await turns()
            switch.cancel()
        ended = True
        resolver.resolve(None)
        await turns(10)

    run(main)
    assert trace == ["ran"] * 5


def test_cancelling_many_is_one_pass(run: Run) -> None:  # S29 S32
    count = 2000
    ended = 0

    async def wait() -> None:
        nonlocal ended
        try:
            await sleep(1000)
        finally:
            ended += 1

    async def main() -> None:
        async with Switch() as switch:
            for _ in range(count):
                switch.fork(wait)
            await turns()
            switch.cancel()

    run(main)
    assert ended == count


@pytest.mark.parametrize("end", ["resume", "throw"])
def test_a_wait_may_be_ended_from_another_thread(run: Run, end: str) -> None:  # S32
    answers: list[bool] = []

    async def main() -> None:
        def begin(suspension: Suspension[str]) -> None:
            def work() -> None:
                for _ in range(2):  # the first may be under way when the second comes: only one counts
                    answers.append(suspension.resume("done") if end == "resume" else suspension.throw(Broken("done")))

            threads.append(threading.Thread(target=work))
            threads[0].start()

        threads: list[threading.Thread] = []
        if end == "resume":
            assert await suspend(begin, "test") == "done"
        else:
            with pytest.raises(Broken, match="done"):
                await suspend(begin, "test")
        threads[0].join()
        await turns()

    run(main)
    assert answers[0] is True


def test_yield_now_works_in_a_plain_task(run: Run) -> None:  # S9 S30
    async def main() -> None:
        async def plain() -> None:
            with CancelScope() as scope:
                await fiber.yield_now()
                soon(scope.cancel)
                await fiber.yield_now()
            assert scope.cancelled

        await asyncio.ensure_future(plain())

    run(main)
