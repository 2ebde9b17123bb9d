"""The primitive under all waits: what a wait that has ended leaves behind, and what it never is."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from domains import Cancelled, CancelScope, Closed, Mutex, Promise, Semaphore, Stream, Switch, fiber
from domains.scheduler.clock import sleep
from domains.scheduler.context import current_fiber
from domains.scheduler.suspend import Suspension, suspend

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


async def locked(mutex: Mutex) -> None:
    async with mutex.ro():
        await fiber.await_cancel()


async def awaited(promise: Promise[Any]) -> Any:
    return await promise


WAITS: dict[str, Callable[[], Callable[[], Awaitable[Any]]]] = {
    "sleep": lambda: lambda: sleep(1000),
    "promise": lambda: lambda: awaited(Promise.create()[0]),
    "take": lambda: Stream[int](1).take,
    "semaphore": lambda: Semaphore(0).acquire,
    "mutex": lambda: lambda: locked(Mutex()),
    "asyncio": lambda: lambda: asyncio.sleep(1000),
}


@pytest.mark.parametrize("kind", list(WAITS))
def test_a_cancelled_wait_is_no_work_for_the_garbage_collector(run: Run, kind: str) -> None:
    """Many fibers that are cancelled at once would make a long stop of it."""
    count = 100

    async def main() -> int:
        async with Switch() as switch:
            for _ in range(count):
                switch.fork(WAITS[kind]())
            await fiber.yield_now()
            await fiber.yield_now()
            gc.collect()
            gc.disable()
            switch.cancel()
        await fiber.yield_now()
        return gc.collect()

    try:
        assert run(main) < count
    finally:
        gc.enable()


def test_a_failed_wait_is_no_work_for_the_garbage_collector(run: Run) -> None:
    count = 100

    async def main() -> int:
        stream: Stream[int] = Stream(1)

        async def take() -> None:
            try:
                await stream.take()
            except Closed:
                return

        async with Switch() as switch:
            for _ in range(count):
                switch.fork(take)
            await fiber.yield_now()
            gc.collect()
            gc.disable()
            stream.close()
        await fiber.yield_now()
        return gc.collect()

    try:
        assert run(main) < count
    finally:
        gc.enable()


def test_a_wait_that_is_resumed_at_once_does_not_switch(run: Run) -> None:
    async def main() -> list[str]:
        trace: list[str] = []

        def begin(suspension: Suspension[str]) -> None:
            assert suspension.resume("at once")
            assert not suspension.resume("again")

        async with Switch() as switch:
            switch.fork(trace.append, "another fiber")
            trace.append(await suspend(begin, "test"))
        return trace

    assert run(main) == ["at once", "another fiber"]


def test_a_wait_that_fails_at_once_raises(run: Run) -> None:
    async def main() -> None:
        def begin(suspension: Suspension[str]) -> None:
            assert suspension.throw(ValueError("at once"))

        await suspend(begin, "test")

    with pytest.raises(ValueError, match="at once"):
        run(main)


def test_the_first_of_completion_and_cancellation_wins(run: Run) -> None:  # S9, S41
    async def main() -> list[str]:
        trace: list[str] = []
        waits: list[Suspension[str]] = []

        def begin(suspension: Suspension[str]) -> Callable[[Suspension[str]], object]:
            waits.append(suspension)
            return lambda _: trace.append("withdrawn")

        async def wait() -> None:
            try:
                trace.append(await suspend(begin, "test"))
            except Cancelled:
                trace.append("cancelled")
                raise

        async with Switch() as switch:
            switch.fork(wait)
            await fiber.yield_now()
            assert waits[0].resume("completed first")
            switch.cancel()
        async with Switch() as switch:
            switch.fork(wait)
            await fiber.yield_now()
            switch.cancel()
            assert not waits[1].resume("too late")
        return trace

    assert run(main) == ["completed first", "withdrawn", "cancelled"]


def test_a_wait_that_is_cancelled_while_it_begins_ends(run: Run) -> None:
    """By a finalizer that happens to run there, or by a message of another domain that is read meanwhile."""

    async def main() -> list[str]:
        trace: list[str] = []
        waits: list[Suspension[None]] = []
        scope = CancelScope()

        def begin(suspension: Suspension[None]) -> Callable[[Suspension[None]], object]:
            waits.append(suspension)
            scope.cancel()
            return lambda _: trace.append("withdrawn")

        async def wait() -> None:
            with scope:
                await suspend(begin, "test")

        async with Switch() as switch:
            switch.fork(wait)
            for _ in range(5):
                await fiber.yield_now()
            assert not waits[0].resume(None)
        assert scope.cancelled
        return trace

    assert run(main) == ["withdrawn"]


async def resume_as_the_first_is_cancelled(resumed: str) -> list[str]:
    """Two fibers wait and are cancelled; as the first wait is withdrawn, one of them is completed."""
    trace: list[str] = []
    waits: dict[str, Suspension[str]] = {}

    async def wait(kind: str) -> None:
        def begin(suspension: Suspension[str]) -> Callable[[Suspension[str]], object]:
            waits[kind] = suspension
            return lambda _: kind != "first" or waits[resumed].resume("resumed")

        try:
            trace.append(await suspend(begin, "test"))
            async with asyncio.timeout(10):
                await asyncio.get_running_loop().create_future()
        finally:
            trace.append(f"{kind} ends")

    async with Switch() as switch:
        switch.fork(wait, "first")
        switch.fork(wait, "second")
        await fiber.yield_now()
        switch.cancel()
    return trace


def test_a_signal_handler_that_comes_between_two_steps_of_cancelling_wins(run: Run) -> None:  # S52
    """The rest of what is cancelled hears of it all the same, and who was resumed as soon as it waits again."""
    assert run(lambda: resume_as_the_first_is_cancelled("first")) == ["resumed", "second ends", "first ends"]


def test_who_is_resumed_while_others_are_cancelled_hears_as_soon_as_it_waits_again(run: Run) -> None:  # S9 S52
    assert run(lambda: resume_as_the_first_is_cancelled("second")) == ["resumed", "first ends", "second ends"]


def test_a_signal_handler_that_comes_between_two_steps_of_resuming_wins(run: Run) -> None:  # S52
    class Interrupted(asyncio.Future[str]):
        def get_loop(self) -> asyncio.AbstractEventLoop:
            if not self.done():
                self.set_result("by the signal handler")
            return super().get_loop()

    async def main() -> None:
        for complete in (lambda wait: wait.resume("late"), lambda wait: wait.throw(ValueError("late"))):
            future = Interrupted()
            suspension = Suspension(current_fiber(), future, "test", None, False)
            assert not complete(suspension)
            assert future.result() == "by the signal handler"

    run(main)


def test_who_waited_on_a_loop_that_is_closed_is_passed_over(run: Run) -> None:  # S32 S50
    semaphore = Semaphore(1)
    closed = asyncio.new_event_loop()
    closed.run_until_complete(semaphore.acquire())
    abandoned: Any = closed.create_task(semaphore.acquire())
    abandoned._log_destroy_pending = False
    closed.run_until_complete(asyncio.sleep(0))
    closed.close()

    async def main() -> None:
        async with Switch() as switch:
            switch.fork(semaphore.acquire)
            await fiber.yield_now()
            semaphore.release()

    run(main)
