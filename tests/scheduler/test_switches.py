"""Switches: waiting, failing, releasing, cancelling, and leaving nothing behind (S15 to S25)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import pickle
import sys
import threading
import traceback
import weakref
from asyncio import CancelledError
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from domains import Cancelled, CancelScope, Promise, Stream, Switch, fiber, move_on_after, protect, timeout
from domains.scheduler.context import root_contexts
from domains.scheduler.suspend import Suspension, suspend

from .conftest import Run


class Broken(Exception):
    """A failure of the tests' own."""


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await fiber.yield_now()


async def never() -> None:
    await fiber.await_cancel()


async def fail(error: BaseException) -> None:
    raise error


async def fail_late(error: BaseException) -> None:
    """Wait until cancelled, and fail then."""
    try:
        await never()
    except CancelledError:
        raise error from None


# Leaving


def test_leaving_waits_for_fibers_then_ends_daemons_then_releases_last_come_first(run: Run) -> None:  # S15
    trace: list[str] = []

    async def work() -> None:
        await turns(5)
        trace.append("fiber ended")

    async def daemon() -> None:
        try:
            await never()
        finally:
            trace.append("daemon cancelled")
            with protect():
                await turns(5)
            trace.append("daemon ended")

    async def release(name: str) -> None:
        trace.append(f"{name} begins")
        await turns()
        trace.append(f"{name} ends")

    async def main() -> None:
        async with Switch() as switch:
            switch.on_release(release, "first hook")
            switch.on_release(trace.append, "plain hook")
            switch.on_release(release, "last hook")
            switch.fork_daemon(daemon)
            switch.fork(work)
            trace.append("body ended")
        trace.append("left")

    run(main)
    assert trace == [
        "body ended",
        "fiber ended",
        "daemon cancelled",
        "daemon ended",
        "last hook begins",
        "last hook ends",
        "plain hook",
        "first hook begins",
        "first hook ends",
        "left",
    ]


def test_release_hooks_are_protected_from_cancellation(run: Run) -> None:  # S15
    trace: list[str] = []

    async def release(name: str) -> None:
        assert not fiber.is_cancelled()
        await turns()
        await asyncio.sleep(0)
        trace.append(name)

    async def main() -> None:
        with CancelScope() as scope:
            async with Switch() as switch:
                switch.on_release(release, "a")
                switch.on_release(scope.cancel)
                switch.on_release(release, "b")
                scope.cancel()
                await never()
        assert scope.cancelled

    run(main)
    assert trace == ["b", "a"]


def test_a_daemon_that_forks_while_it_is_cancelled_is_waited_for(run: Run) -> None:  # S15
    trace: list[str] = []

    async def work() -> None:
        await turns(5)
        trace.append("fiber ended")

    async def daemon(switch: Switch) -> None:
        try:
            await never()
        finally:
            switch.fork(work)
            switch.fork_daemon(lambda: pytest.fail("the daemons are cancelled"))

    async def main() -> None:
        async with Switch() as switch:
            switch.fork_daemon(daemon, switch)
            await turns()
        trace.append("left")

    run(main)
    assert trace == ["fiber ended", "left"]


def test_daemons_in_scopes_of_their_own_are_waited_for(run: Run) -> None:  # S15
    trace: list[str] = []

    async def daemon(name: str) -> None:
        with timeout(1000):
            async with Switch() as switch:
                switch.fork(never)
                try:
                    await never()
                finally:
                    with protect():
                        await turns(4)
                    trace.append(name)

    async def main() -> None:
        async with Switch() as switch:
            for name in "abc":
                switch.fork_daemon(daemon, name)
            await turns()

    run(main)
    assert trace == ["a", "b", "c"]


def test_a_daemon_that_ends_inside_a_scope_that_it_has_not_left_blocks_nobody(run: Run) -> None:  # S15
    async def daemon() -> None:
        timeout(1000).__enter__()

    async def main() -> None:
        async with Switch() as switch:
            switch.fork_daemon(daemon)
            switch.fork(daemon)

    run(main)


def test_a_hook_that_is_added_while_releasing_is_run(run: Run) -> None:  # S15
    trace: list[str] = []

    async def main() -> None:
        async with Switch() as switch:
            switch.on_release(trace.append, "outer")
            switch.on_release(lambda: switch.on_release(trace.append, "inner"))

    run(main)
    assert trace == ["inner", "outer"]


def test_nothing_can_be_forked_while_releasing(run: Run) -> None:  # S15 S18
    async def main() -> None:
        def release(switch: Switch) -> None:
            for fork in (switch.fork, switch.fork_promise, switch.fork_daemon, switch.fork_seq):
                with pytest.raises(RuntimeError, match=r"'closing'.*releasing"):
                    fork(never)

        async with Switch("closing") as switch:
            switch.on_release(release, switch)

    run(main)


# Failing


@pytest.mark.parametrize("where", ["body", "fiber", "plain fiber", "daemon"])
def test_a_failure_anywhere_cancels_everything_and_is_raised_as_itself(run: Run, where: str) -> None:  # S16 S22
    failure = Broken()
    reasons: list[BaseException | None] = []

    async def work() -> None:
        try:
            await never()
        except Cancelled as cancelled:
            reasons.append(cancelled.reason)
            raise

    def plain() -> None:
        raise failure

    async def main() -> None:
        with pytest.raises(Broken) as caught:
            async with Switch() as switch:
                switch.fork(work)
                switch.fork_daemon(work)
                promise = switch.fork_promise(work)
                await turns()
                if where == "body":
                    raise failure
                if where == "plain fiber":
                    switch.fork(plain)
                else:
                    (switch.fork if where == "fiber" else switch.fork_daemon)(fail, failure)
                await work()
        assert caught.value is failure
        with pytest.raises(Cancelled) as cancelled:
            await promise
        assert cancelled.value.reason is failure

    run(main)
    assert reasons == [failure] * (3 if where == "body" else 4)


def test_several_failures_are_raised_as_a_group_in_the_order_of_failing(run: Run) -> None:  # S16
    async def main() -> None:
        with pytest.raises(ExceptionGroup, match="'grouping'") as caught:
            async with Switch("grouping") as switch:
                switch.on_release(fail, Broken("hook"))
                switch.fork_daemon(fail_late, Broken("daemon"))
                switch.fork(fail_late, Broken("fiber"))
                switch.fork(never)
                await turns()
                raise Broken("body")
        assert [str(error) for error in caught.value.exceptions] == ["body", "daemon", "fiber", "hook"]

    run(main)


def test_a_group_of_failures_may_hold_more_than_exceptions(run: Run) -> None:  # S16
    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as caught:
            async with Switch() as switch:
                switch.fork(fail_late, KeyboardInterrupt())
                await turns()
                raise Broken
        assert [type(error) for error in caught.value.exceptions] == [Broken, KeyboardInterrupt]

    run(main)


def test_a_fiber_that_has_not_begun_when_its_switch_fails_never_begins(run: Run) -> None:  # S16 S18
    async def main() -> None:
        with pytest.raises(Broken):
            async with Switch() as switch:
                switch.fork(fail, Broken())
                switch.fork(lambda: pytest.fail("was run"))
                switch.fork_daemon(lambda: pytest.fail("was run"))
                promise = switch.fork_promise(lambda: pytest.fail("was run"))
        with pytest.raises(Cancelled):
            await promise

    run(main)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Refuses its context to be set."""


def test_a_failure_that_cannot_be_changed_is_raised_as_itself(run: Run) -> None:  # S16
    async def fail() -> None:
        raise Frozen

    async def main() -> None:
        with pytest.raises(Frozen):
            async with Switch() as switch:
                switch.fork(fail)

    run(main)


def test_a_body_that_swallows_the_cancellation_does_not_hide_the_failure(run: Run) -> None:  # S16
    async def main() -> None:
        with pytest.raises(Broken):
            async with Switch() as switch:
                switch.fork(fail, Broken())
                with contextlib.suppress(CancelledError):
                    await never()

    run(main)


def test_a_failure_keeps_its_own_context_and_a_short_traceback(run: Run) -> None:  # S16
    async def chain() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise Broken("second") from None

    async def main() -> None:
        with pytest.raises(Broken) as caught:
            async with Switch() as switch:
                switch.fork(chain)
                await never()
        assert isinstance(caught.value.__context__, KeyError)
        assert caught.value.__suppress_context__
        frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert frames.count("chain") == 1
        assert len(frames) <= 5

    run(main)


def test_cleaning_up_with_a_timeout_of_its_own_makes_a_cancelled_fiber_no_failure(run: Run) -> None:  # S16 S20
    trace: list[str] = []

    async def work(sleep: Callable[[float], Awaitable[None]]) -> None:
        try:
            await sleep(1000)
        finally:
            with protect():
                with move_on_after(0):
                    await sleep(1000)
                async with Switch() as inner:
                    inner.fork(never)
                    inner.cancel()
                with pytest.raises(Broken):
                    await fiber.both(never, lambda: fail(Broken()))
            trace.append("cleaned up")

    async def main() -> None:
        from domains.scheduler.clock import sleep

        for sleeping in (sleep, asyncio.sleep):
            async with Switch() as switch:
                switch.fork(work, sleeping)
                switch.fork_daemon(work, sleeping)
                promise = switch.fork_promise(work, sleeping)
                await turns(5)
                switch.cancel()
                await work(sleeping)
            assert promise.is_resolved

    run(main)
    assert trace == ["cleaned up"] * 8


# Hooks


def test_a_failing_hook_does_not_stop_the_later_ones(run: Run) -> None:  # S17
    trace: list[str] = []

    def plain() -> None:
        raise Broken("plain")

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with Switch() as switch:
                switch.on_release(trace.append, "last")
                switch.on_release(plain)
                switch.on_release(trace.append, "middle")
                switch.on_release(fail, Broken("async"))
                switch.fork(fail, Broken("fiber"))
        assert [str(error) for error in caught.value.exceptions] == ["fiber", "async", "plain"]

        with pytest.raises(Broken, match="alone"):
            async with Switch() as switch:
                switch.on_release(fail, Broken("alone"))

    run(main)
    assert trace == ["middle", "last"]


def test_a_hook_that_raises_the_failure_itself_adds_nothing(run: Run) -> None:  # S17
    failure = Broken()

    async def main() -> None:
        with pytest.raises(Broken) as caught:
            async with Switch() as switch:
                switch.on_release(fail, failure)
                raise failure
        assert caught.value is failure

    run(main)


# Forking


def test_fork_on_a_finished_or_unentered_switch_raises_and_names_it(run: Run) -> None:  # S18
    async def main() -> None:
        async with Switch("gone") as finished:
            pass
        unentered = Switch("coming")
        for switch, name in ((finished, "'gone', finished"), (unentered, "'coming', not entered")):
            for fork in (switch.fork, switch.fork_promise, switch.fork_daemon, switch.fork_seq):
                with pytest.raises(RuntimeError, match=name):
                    fork(lambda *_: pytest.fail("was run"))
            with pytest.raises(RuntimeError, match=name):
                await switch.enter(contextlib.nullcontext())
        finished.cancel()
        assert finished.error is None
        with pytest.raises(RuntimeError, match="gone"):
            finished.fail(Broken())
        for call in (unentered.cancel, unentered.check, lambda: unentered.fail(Broken())):
            with pytest.raises(RuntimeError, match="coming"):
                call()
        with pytest.raises(RuntimeError, match="gone"):
            await finished.__aenter__()

    run(main)


def test_fork_on_a_cancelled_switch_runs_nothing(run: Run) -> None:  # S18
    async def main() -> None:
        async with Switch() as switch:
            switch.cancel()
            switch.fork(lambda: pytest.fail("was run"))
            switch.fork_daemon(lambda: pytest.fail("was run"))
            promise = switch.fork_promise(lambda: pytest.fail("was run"))
            assert promise.is_resolved
        with pytest.raises(Cancelled):
            await promise

    run(main)


@pytest.mark.parametrize(
    ("fork", "expected"),
    [
        (Switch.fork, ["item"]),
        (Switch.fork_promise, ["item"]),
        (Switch.fork_daemon, ["item", "went on"]),  # as if it had been ended with all else
    ],
)
def test_what_follows_a_switch_in_which_a_fiber_was_not_begun_does_not_run(
    run: Run, fork: Callable[..., object], expected: list[str]
) -> None:  # S9 S18
    trace: list[str] = []

    async def main() -> None:
        stream: Stream[str] = Stream(1)

        async def work() -> None:
            async with Switch() as inner:
                trace.append(await stream.take())
                fork(inner, trace.append, "was run")
            trace.append("went on")

        async with Switch() as outer:
            outer.fork(work)
            await turns()
            stream.add_nonblocking("item")
            outer.cancel()

    run(main)
    assert trace == expected


def test_a_fiber_may_be_named_and_is_named_after_its_function_otherwise(run: Run) -> None:  # S18
    async def named() -> None:
        names.append(fiber_name())

    def fiber_name() -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    names: list[str] = []

    async def main() -> None:
        async with Switch() as switch:
            switch.fork(named)
            switch.fork(named, name="given")
            switch.fork_daemon(lambda: names.append(fiber_name()))
            assert switch.fork_promise(named).label == "named"
            await turns()

    run(main)
    assert names == ["named", "given", "<lambda>", "named"]


# Resources


def test_on_release_on_a_finished_switch_releases_at_once_and_raises(run: Run) -> None:  # S19
    trace: list[str] = []

    async def main() -> None:
        released, resolver = Promise[None].create()

        async def release() -> None:
            await turns()
            trace.append("async")
            resolver.resolve(None)

        async with Switch("gone") as switch:
            pass
        with pytest.raises(RuntimeError, match=r"'gone'.*released at once"):
            switch.on_release(trace.append, "plain")
        with pytest.raises(RuntimeError, match="released at once"):
            Switch().on_release(trace.append, "not entered")
        with pytest.raises(RuntimeError, match="released at once"):
            switch.on_release(release)
        assert trace == ["plain", "not entered"]
        await released

    run(main)
    assert trace == ["plain", "not entered", "async"]


def test_a_hook_is_removed_exactly_once(run: Run) -> None:  # S19
    trace: list[str] = []

    async def main() -> None:
        async with Switch() as switch:
            removed = switch.on_release(lambda: pytest.fail("was removed"))
            kept = switch.on_release(trace.append, "kept")
            assert removed.remove()
            assert not removed.remove()
        assert not kept.remove()
        async with Switch() as switch:
            first = switch.on_release(lambda: pytest.fail("was removed by a later hook"))
            switch.on_release(lambda: trace.append(str(first.remove())))

    run(main)
    assert trace == ["kept", "True"]


# Ending from inside


def test_cancel_ends_everything_quietly_and_keeps_results(run: Run) -> None:  # S20
    async def main() -> None:
        async with Switch() as switch:
            done = switch.fork_promise(lambda: "result")
            cut = switch.fork_promise(never)
            switch.fork(never)
            switch.fork(asyncio.sleep, 1000)
            switch.fork_daemon(never)
            await turns()
            switch.cancel()
            switch.cancel()
            with pytest.raises(Cancelled):
                switch.check()
            await never()
        assert not fiber.is_cancelled()
        assert await done == "result"
        with pytest.raises(Cancelled):
            await cut
        with pytest.raises(Cancelled):
            switch.check()

    run(main)


def test_check_of_a_cancelled_switch_in_its_own_body_is_quiet_outside(run: Run) -> None:  # S20
    async def main() -> None:
        async with Switch() as switch:
            switch.check()
            switch.fork(switch.check)
            switch.cancel()
            with protect():
                switch.check()

    run(main)


def test_a_promise_that_failed_as_its_fiber_was_cancelled_is_no_failure_of_the_switch(run: Run) -> None:  # S20
    async def main() -> None:
        async with Switch() as switch:
            promise = switch.fork_promise(never)

            async def wait() -> None:
                with protect():
                    await promise

            switch.fork(wait)
            await turns()
            switch.cancel()

    run(main)


def test_a_failure_while_being_cancelled_quietly_is_raised(run: Run) -> None:  # S20
    async def main() -> None:
        with pytest.raises(Broken):
            async with Switch() as switch:
                switch.fork(fail_late, Broken())
                await turns()
                switch.cancel()

    run(main)


def test_fail_raises_outside_what_it_was_given(run: Run) -> None:  # S20
    failure = Broken()

    async def main() -> None:
        with pytest.raises(Broken) as caught:
            async with Switch() as switch:
                assert switch.error is None
                asyncio.get_running_loop().call_soon(switch.fail, failure)
                try:
                    await never()
                finally:
                    assert switch.error is failure
        assert caught.value is failure
        with pytest.raises(Broken):
            async with Switch() as switch:
                switch.fail(failure)
                switch.fail(failure)
                raise failure
        with pytest.raises(ExceptionGroup):
            async with Switch() as switch:
                switch.fail(Broken("one"))
                switch.fail(Broken("other"))
        with pytest.raises(Broken):
            async with Switch() as switch:
                switch.on_release(switch.fail, failure)

    run(main)


def test_fail_takes_exceptions_only(run: Run) -> None:  # S20
    async def main() -> None:
        async with Switch() as switch:
            for wrong in ("text", Broken, None):
                with pytest.raises(TypeError, match="exception"):
                    switch.fail(wrong)  # type: ignore[arg-type]
            assert switch.error is None
            assert not fiber.is_cancelled()

    run(main)


# Trees of switches


def test_a_failure_that_is_handled_inside_does_not_touch_the_parent(run: Run) -> None:  # S21
    async def main() -> None:
        async with Switch() as outer:
            promise = outer.fork_promise(turns, 10)
            with pytest.raises(Broken):
                async with Switch() as inner:
                    inner.fork(fail, Broken())
            assert outer.error is None
            outer.check()
        assert await promise is None

    run(main)


def test_the_cancellation_of_a_parent_reaches_all_descendants_but_protected_ones(run: Run) -> None:  # S21
    trace: list[str] = []

    async def wait(name: str) -> None:
        try:
            await never()
        finally:
            trace.append(name)

    async def nested() -> None:
        async with Switch() as one, Switch() as two:
            one.fork(wait, "one")
            two.fork_daemon(wait, "daemon of two")
            await wait("body")

    async def protected() -> None:
        async with Switch(protected=True) as switch:
            switch.fork(turns, 10)
            await turns(10)
            assert not fiber.is_cancelled()
            switch.check()
            trace.append("protected went on")
        assert fiber.is_cancelled()

    async def main() -> None:
        async with Switch() as parent:
            parent.fork(nested)
            parent.fork(protected)
            await turns(5)
            parent.cancel()

    run(main)
    assert trace == ["body", "one", "daemon of two", "protected went on"]


def test_a_protected_switch_fails_from_inside(run: Run) -> None:  # S21
    async def main() -> None:
        with CancelScope() as scope:
            scope.cancel()
            with pytest.raises(Broken):
                async with Switch(protected=True) as switch:
                    switch.fork(fail, Broken())
                    await never()
            async with Switch(protected=True) as switch:
                switch.fork(never)
                switch.cancel()
                await never()
            with pytest.raises(Cancelled):
                fiber.check()

    run(main)


def test_a_protected_switch_keeps_foreign_code_in_it_undisturbed_and_settles_accounts(run: Run) -> None:  # S21
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        with CancelScope() as scope:
            asyncio.get_running_loop().call_soon(scope.cancel)
            with contextlib.suppress(CancelledError):
                await asyncio.sleep(1000)
            assert task.cancelling() == 1
            async with Switch(protected=True) as switch:
                await asyncio.sleep(0.001)
                asyncio.get_running_loop().call_soon(switch.cancel)
                await asyncio.sleep(1000)
            assert task.cancelling() == 1
        assert task.cancelling() == 0

    run(main)


def test_fibers_forked_from_outside_belong_to_the_switch(run: Run) -> None:  # S21
    trace: list[str] = []

    async def main() -> None:
        async with Switch() as outer:
            async with Switch() as inner:
                outer.fork(inner.fork, turns, 5)
                await turns()
                with CancelScope() as scope:
                    scope.cancel()
                    inner.fork(trace.append, "not of the scope that it is forked in")

    run(main)
    assert trace == ["not of the scope that it is forked in"]


# Daemons and promises


def test_a_daemon_may_return(run: Run) -> None:  # S22
    async def main() -> None:
        async with Switch() as switch:
            switch.fork_daemon(turns, 2)
            switch.fork_daemon(lambda: None)
            await turns(5)
            switch.check()

    run(main)


def test_a_daemon_that_fails_while_being_ended_fails_the_switch(run: Run) -> None:  # S22
    async def main() -> None:
        with pytest.raises(Broken):
            async with Switch() as switch:
                switch.fork_daemon(fail_late, Broken())
                await turns()
        own = Cancelled()
        with pytest.raises(Cancelled) as caught:
            async with Switch() as switch:
                switch.fork_daemon(fail, own)
                await never()
        assert caught.value is own

    run(main)


def test_a_failure_of_fork_promise_goes_to_the_promise_only(run: Run) -> None:  # S23
    failure = Broken()

    async def main() -> None:
        async with Switch() as switch:
            promise = switch.fork_promise(fail, failure)
            await turns()
            switch.check()
            with pytest.raises(Broken) as caught:
                await promise
            assert caught.value is failure

    run(main)


def test_a_failure_that_nobody_looked_at_is_logged_when_the_switch_ends(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:  # S23
    async def main() -> None:
        async with Switch("logging") as switch:
            switch.fork_promise(fail, Broken("unseen"), name="unseen promise")
            awaited = switch.fork_promise(fail, Broken("awaited"))
            peeked = switch.fork_promise(fail, Broken("peeked"))
            switch.fork_promise(fail, CancelledError())
            with pytest.raises(Broken):
                await awaited
            peeked.peek()
            assert caplog.records == []

    run(main)
    (record,) = caplog.records
    assert record.name == "domains"
    assert record.levelno == logging.ERROR
    assert "unseen promise" in record.getMessage()
    assert "logging" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "unseen"


def test_failures_that_were_seen_do_not_pile_up_in_a_switch_that_lasts(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:  # S23
    async def main() -> None:
        async with Switch() as switch:
            failures = []
            for number in range(1000):
                failure = Broken(str(number))
                failures.append(weakref.ref(failure))
                with pytest.raises(Broken):
                    await switch.fork_promise(fail, failure)
                del failure
            gc.collect()
            assert sum(ref() is not None for ref in failures) < 200
            for number in range(100):
                switch.fork_promise(fail, Broken(f"unseen {number}"))

    run(main)
    assert len(caplog.records) == 100


# Whose it is


def test_a_switch_belongs_to_its_loop(run: Run) -> None:  # S24
    async def main() -> None:
        async with Switch("local") as switch:

            def use() -> None:
                calls: list[Callable[[], object]] = [
                    lambda: switch.fork(never),
                    lambda: switch.fork_daemon(never),
                    lambda: switch.fork_promise(never),
                    lambda: switch.cancel(),
                    lambda: switch.fail(Broken()),
                    lambda: switch.check(),
                ]
                for call in calls:
                    with pytest.raises(RuntimeError, match="another event loop or thread"):
                        call()
                checked.append("all")

            checked: list[str] = []
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
            assert checked == ["all"]
            switch.check()

    run(main)


def test_a_switch_cannot_be_sent() -> None:  # S24
    with pytest.raises(TypeError, match=r"'local'.*cannot be sent"):
        pickle.dumps(Switch("local"))


@pytest.mark.parametrize("where", ["inside a scope", "in another fiber"])
def test_a_switch_that_is_left_at_the_wrong_place_ends_its_fibers_and_raises(run: Run, where: str) -> None:  # S24
    trace: list[str] = []

    async def wait() -> None:
        try:
            await never()
        finally:
            trace.append("ended")

    async def main() -> None:
        async with Switch() as outer:
            switch = Switch()
            await switch.__aenter__()
            switch.fork(wait)
            await turns()
            with protect():
                if where == "inside a scope":
                    left = switch.__aexit__(None, None, None)
                else:
                    left = outer.fork_promise(switch.__aexit__, None, None, None)
                with pytest.raises(RuntimeError, match="must be left in the fiber"):
                    await left
                await turns()
                assert trace == ["ended"]
            await switch.__aexit__(None, None, None)

    run(main)


def test_a_switch_that_is_left_twice_was_not_cancelled(run: Run) -> None:  # S24
    async def main() -> None:
        async with Switch() as switch:
            pass
        with pytest.raises(RuntimeError, match="must be left in the fiber"):
            await switch.__aexit__(None, None, None)
        assert not switch.is_cancelled

    run(main)


@pytest.mark.parametrize("how", ["fork", "fork_within", "fork_promise", "fork_daemon"])
def test_a_fiber_that_cannot_be_made_is_not_waited_for(run: Run, how: str) -> None:  # S15
    class Unspeakable:
        def __str__(self) -> str:
            raise Broken

    async def block() -> None:
        async with Switch() as switch:
            with pytest.raises(Broken):
                getattr(switch, how)(never, name=Unspeakable())
            assert not [context for context in switch._context.children if context is not switch._daemons]

    async def main() -> None:
        task = asyncio.create_task(block())
        await turns()
        assert task.done()
        await task

    run(main)


@pytest.mark.parametrize("how", ["fork", "fork_within", "fork_promise", "fork_daemon"])
def test_a_fiber_that_has_begun_is_waited_for_even_if_a_signal_handler_raises_then(run: Run, how: str) -> None:  # S15
    trace: list[str] = []

    def raise_when_begun(frame: Any, event: str, _: Any) -> Any:  # as a signal handler does
        if frame.f_code is not Switch._start.__code__:
            return None
        if event == "return":
            sys.settrace(None)
            raise Broken
        return raise_when_begun

    async def work() -> None:
        await turns()
        trace.append("ended")

    async def block() -> None:
        async with Switch() as switch:
            before = sys.gettrace()
            sys.settrace(raise_when_begun)
            with pytest.raises(Broken):
                getattr(switch, how)(work, name="work")
            sys.settrace(before)
            if how == "fork_daemon":
                await turns(5)
        trace.append("left")

    async def main() -> None:
        task = asyncio.create_task(block())
        await turns(10)
        assert task.done()
        await task

    run(main)
    assert trace == ["ended", "left"]


# Context managers


class Manager:
    """Writes down how it is entered and left."""

    def __init__(self, name: str, trace: list[str], failure: BaseException | None = None) -> None:
        self.name = name
        self.trace = trace
        self.failure = failure

    def __enter__(self) -> str:
        self.trace.append(f"enter {self.name}")
        return self.name

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        self.trace.append(f"exit {self.name} {error!r}")
        if self.failure is not None:
            raise self.failure
        return True


class AsyncManager(Manager):
    async def __aenter__(self) -> str:
        await fiber.yield_now()
        return self.__enter__()

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        await fiber.yield_now()
        return self.__exit__(kind, error, traceback)


def test_entered_managers_are_left_among_the_hooks_last_come_first(run: Run) -> None:  # S25
    trace: list[str] = []

    async def main() -> None:
        async with Switch() as switch:
            assert await switch.enter(Manager("a", trace)) == "a"
            switch.on_release(trace.append, "hook")
            assert await switch.enter(AsyncManager("b", trace)) == "b"
            trace.append("body")

    run(main)
    assert trace == ["enter a", "enter b", "body", "exit b None", "hook", "exit a None"]


def test_entered_managers_are_told_the_failure_but_do_not_suppress_it(run: Run) -> None:  # S25
    trace: list[str] = []

    async def main() -> None:
        with pytest.raises(Broken):
            async with Switch() as switch:
                await switch.enter(Manager("a", trace))
                raise Broken("x")

    run(main)
    assert trace == ["enter a", "exit a Broken('x')"]


@pytest.mark.parametrize("from_outside", [False, True])
def test_entered_managers_are_told_of_a_cancellation(run: Run, from_outside: bool) -> None:  # S25
    committed: list[str] = []

    @contextlib.asynccontextmanager
    async def transaction() -> AsyncIterator[None]:
        try:
            yield
        except CancelledError:
            committed.append("rolled back")
            raise
        else:
            committed.append("committed")

    async def main() -> None:
        with CancelScope() as scope:
            async with Switch() as switch:
                await switch.enter(transaction())
                (scope if from_outside else switch).cancel()
                await never()
        assert scope.cancelled is from_outside

    run(main)
    assert committed == ["rolled back"]


def test_a_failing_exit_joins_the_failures(run: Run) -> None:  # S25
    trace: list[str] = []
    failure = Broken("body")

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with Switch() as switch:
                await switch.enter(Manager("a", trace, Broken("exit a")))
                await switch.enter(AsyncManager("b", trace, Broken("exit b")))
                raise failure
        assert [str(error) for error in caught.value.exceptions] == ["body", "exit b", "exit a"]
        with pytest.raises(Broken) as alone:
            async with Switch() as switch:
                await switch.enter(Manager("raises what it is told", trace, failure))
                raise failure
        assert alone.value is failure

    run(main)


def test_a_manager_that_fails_to_enter_is_not_left(run: Run) -> None:  # S25
    async def main() -> None:
        @contextlib.contextmanager
        def refusing() -> Iterator[None]:
            raise Broken
            yield

        async with Switch() as switch:
            with pytest.raises(Broken):
                await switch.enter(refusing())
            with pytest.raises(TypeError, match="context manager"):
                await switch.enter(object())  # type: ignore[call-overload]

    run(main)


@pytest.mark.parametrize("kind", [Switch, CancelScope, lambda: timeout(10)])
def test_a_manager_that_is_a_block_of_its_own_is_refused_and_left(run: Run, kind: Callable[[], Any]) -> None:  # S25
    trace: list[str] = []

    @contextlib.asynccontextmanager
    async def holding(manager: Any) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            if hasattr(manager, "__aenter__"):
                await stack.enter_async_context(manager)
            else:
                stack.enter_context(manager)
            try:
                yield
            finally:
                trace.append("left")

    async def main() -> None:
        async with Switch("the one") as switch:
            with pytest.raises(RuntimeError, match=r"'the one'.* cannot keep a "):
                await switch.enter(kind())
            with pytest.raises(RuntimeError, match="cannot keep"):
                await switch.enter(holding(kind()))
            switch.fork(trace.append, "goes on")

    run(main)
    assert trace == ["left", "goes on"]


def test_a_manager_that_was_entered_as_the_switch_finished_is_left_at_once(run: Run) -> None:  # S19 S25
    trace: list[str] = []

    async def main() -> None:
        promise, resolver = Promise[None].create()

        class Slow(AsyncManager):
            async def __aenter__(self) -> str:
                await promise
                return "slow"

        async with Switch() as outer:
            async with Switch() as switch:
                entering = outer.fork_promise(switch.enter, Slow("slow", trace))
                await turns()
            resolver.resolve(None)
            with pytest.raises(RuntimeError, match="released at once"):
                await entering
            await turns()
        assert trace == ["exit slow None"]

    run(main)


# What remains


@pytest.mark.parametrize(
    "end", ["ends", "is cancelled", "is cut short", "fails in a fiber", "fails in the body", "fails twice"]
)
def test_a_switch_and_its_fibers_leave_no_cycles(run: Run, end: str) -> None:  # S15 S16
    refs: list[weakref.ref[Any]] = []

    def tracked(thing: Any) -> Any:
        refs.append(weakref.ref(thing))
        return thing

    async def fail_tracked() -> None:
        raise tracked(Broken())

    async def fail_tracked_late() -> None:
        try:
            await never()
        finally:
            raise tracked(Broken())

    async def use() -> None:
        async with tracked(Switch()) as switch:
            switch.fork(turns)
            switch.fork_daemon(never)
            switch.on_release(turns)
            with contextlib.suppress(Broken):
                await switch.fork_promise(fail_tracked)
            with contextlib.suppress(TimeoutError), timeout(0):
                await never()
            if end == "fails in a fiber":
                switch.fork(fail_tracked)
                await never()
            elif end == "fails in the body":
                await fail_tracked()
            elif end == "is cancelled":
                switch.cancel()
                await never()
            elif end == "is cut short":
                with move_on_after(0):
                    await never()
            elif end == "fails twice":
                switch.fork(fail_tracked_late)
                await turns()
                await fail_tracked()

    async def main() -> None:
        gc.collect()
        gc.disable()
        try:
            with contextlib.suppress(Exception):
                await use()
            await turns()
            assert len(refs) >= 2
            assert [ref() for ref in refs if ref() is not None] == []
        finally:
            gc.enable()

    run(main)


def test_a_failure_awaited_in_a_sequence_leaves_no_cycle(run: Run) -> None:  # S13 S36
    async def main() -> None:
        async def produce(_: Any) -> None:
            raise Broken

        async def use() -> weakref.ref[Any]:
            async with Switch() as switch:
                try:
                    await anext(switch.fork_seq(produce))
                except Broken as failure:
                    return weakref.ref(failure)
            raise AssertionError

        gc.collect()
        gc.disable()
        try:
            ref = await use()
            await turns()
            assert ref() is None
        finally:
            gc.enable()

    run(main)


def test_no_context_outlives_its_run(run: Run) -> None:  # S15
    async def main() -> None:
        async with Switch() as switch:
            switch.fork_daemon(never)
            switch.fork(fiber.first, never, turns)
            await turns()

    gc.collect()
    before = len(root_contexts())
    run(main)
    gc.collect()
    assert len(root_contexts()) <= before


def test_a_generator_with_a_switch_may_be_closed(run: Run) -> None:  # S16
    trace: list[str] = []

    async def wait() -> None:
        try:
            await never()
        except Cancelled as cancelled:
            trace.append(type(cancelled.reason).__name__)
            raise

    async def generate() -> AsyncIterator[int]:
        async with Switch() as switch:
            switch.fork(wait)
            await turns()
            yield 1

    async def main() -> None:
        generator: Any = generate()
        assert await anext(generator) == 1
        await generator.aclose()
        fiber.check()

    run(main)
    assert trace == ["GeneratorExit"]


def test_a_wait_that_is_destroyed_is_withdrawn(run: Run) -> None:  # S32
    withdrawn: list[Suspension[None]] = []
    begun: list[Suspension[None]] = []

    def begin(suspension: Suspension[None]) -> Callable[[Suspension[None]], None]:
        begun.append(suspension)
        return withdrawn.append

    async def operation() -> None:
        await suspend(begin, "test")

    async def main() -> None:
        for end in ("close", "throw", "cancel"):
            coroutine = operation()
            coroutine.send(None)
            if end == "close":
                coroutine.close()
            else:
                error = Broken() if end == "throw" else CancelledError()
                with pytest.raises(type(error)):
                    coroutine.throw(error)
        assert withdrawn == begun
        assert len(begun) == 3
        assert not any(suspension.resume(None) or suspension.throw(Broken()) for suspension in begun)

    run(main)


def test_a_switch_tells_whether_it_was_cancelled(run: Run) -> None:  # S16
    async def main() -> None:
        switch = Switch()
        assert not switch.is_cancelled
        async with switch:
            assert not switch.is_cancelled
            switch.cancel()
            assert switch.is_cancelled

    run(main)


# Fibers in a context of their own


def test_a_fiber_within_its_own_context_is_cancelled_alone(run: Run) -> None:  # S20
    trace: list[object] = []

    async def wait(name: str) -> None:
        try:
            await never()
        except Cancelled as cancelled:
            trace.append((name, cancelled.reason))
            raise

    async def main() -> None:
        async with Switch() as switch:
            first = switch.fork_within(wait, "first", name="first")
            switch.fork_within(wait, "second", name="second")
            await turns()
            reason = Broken("only this one")
            first.cancel(reason)
            await turns()
            assert trace == [("first", reason)]
            assert switch.error is None
            switch.cancel()
        assert trace == [("first", reason), ("second", None)]

    run(main)


def test_a_fiber_within_its_own_context_begins_even_if_it_was_cancelled_before(run: Run) -> None:  # S21
    trace: list[str] = []

    async def work() -> None:
        trace.append("begun")
        fiber.check()
        trace.append("went on")

    async def main() -> None:
        async with Switch() as switch:
            switch.fork_within(work, name="work").cancel(None)
        async with Switch() as switch:
            switch.cancel()
            switch.fork_within(work, name="work")

    run(main)
    assert trace == ["begun", "begun"]


def test_a_failure_within_its_own_context_fails_the_switch_and_nothing_of_it_stays(run: Run) -> None:  # S16
    async def main() -> None:
        failure = Broken("x")
        switch = Switch()
        with pytest.raises(Broken) as caught:
            async with switch:
                switch.fork_within(turns, name="ends")
                switch.fork_within(fail, failure, name="fails")
                await never()
        assert caught.value is failure
        assert not switch._context.children

    run(main)


# Work without a fiber


class Work:
    """Goes on elsewhere, until somebody says that it has ended."""

    def __init__(self, switch: Switch, trace: list[str]) -> None:
        self.promise, self.resolver = Promise[str].create("work")
        self.switch = switch
        self.trace = trace
        switch.adopt(self)

    def cancel(self, reason: BaseException | None) -> None:
        self.trace.append(f"cancelled because of {reason!r}")
        soon(self.end, Cancelled(reason))

    def end(self, outcome: str | BaseException) -> None:
        if isinstance(outcome, str):
            self.resolver.resolve(outcome)
        else:
            self.resolver.fail(outcome)
        self.switch.disown(self, self.promise)


def soon(f: Callable[..., object], *args: object) -> None:
    asyncio.get_running_loop().call_soon(f, *args)


def test_a_switch_waits_for_work_that_it_has_adopted(run: Run) -> None:  # S15
    trace: list[str] = []

    async def main() -> None:
        async with Switch() as switch:
            work = Work(switch, trace)
            switch.fork(turns)
            asyncio.get_running_loop().call_later(0.002, work.end, "result")
        assert await work.promise == "result"

    run(main)
    assert trace == []


def test_adopted_work_is_cancelled_with_its_switch(run: Run) -> None:  # S16 S20 S21
    trace: list[str] = []
    failure = Broken("x")

    async def main() -> None:
        with pytest.raises(Broken):
            async with Switch() as switch:
                Work(switch, trace)
                raise failure
        async with Switch() as switch:
            Work(switch, trace)
            switch.cancel()
            Work(switch, trace)
        with CancelScope() as scope:
            async with Switch() as switch:
                Work(switch, trace)
                scope.cancel()
        assert scope.cancelled

    run(main)
    assert trace == ["cancelled because of Broken('x')"] + ["cancelled because of None"] * 3


def test_a_failure_of_adopted_work_is_its_promises_and_logged_if_nobody_looks(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:  # S23
    async def main() -> None:
        async with Switch() as switch:
            seen, unseen = Work(switch, []), Work(switch, [])
            seen.end(Broken("seen"))
            unseen.end(Broken("unseen"))
            with pytest.raises(Broken, match="seen"):
                await seen.promise
            switch.check()

    run(main)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "unseen"


def test_work_cannot_be_adopted_by_a_switch_that_is_not_open(run: Run) -> None:  # S18
    async def main() -> None:
        async with Switch() as switch:
            pass
        with pytest.raises(RuntimeError, match="finished"):
            Work(switch, [])

    run(main)


def test_a_switch_that_is_interrupted_lets_it_out(run: Run) -> None:  # S21 S28
    reason = Broken()

    async def main() -> None:
        switch = Switch()
        switch.interrupt(reason)  # not entered: nothing happens
        with pytest.raises(Cancelled) as caught:
            async with switch:
                switch.fork(never)
                soon(switch.interrupt, reason)
        assert caught.value.reason is reason

    run(main)
