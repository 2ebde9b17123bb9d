"""Blocking calls in threads (S60), and waking fibers from other threads (S33, S34)."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from domains import (
    AlreadyResolved,
    Cancelled,
    CancelScope,
    Promise,
    Resolver,
    Switch,
    fiber,
    move_on_after,
    run_in_thread,
    timeout,
)
from domains.scheduler.clock import sleep
from domains.scheduler.threads import THREADS_AT_ONCE, CallThread, _calls

Run = Callable[[Callable[[], Awaitable[Any]]], Any]

THREADS = 8
PATIENCE_SECONDS = 20.0


class Gate:
    """A blocking call that tells when it has begun, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun: Promise[None]
        self.begun, self._resolver = Promise.create("begun")
        self.opened = threading.Event()
        self.has_ended = threading.Event()

    def __call__(self) -> str:
        self._resolver.resolve(None)
        assert self.opened.wait(PATIENCE_SECONDS)
        self.has_ended.set()
        return "passed"


def test_a_call_returns_its_result_and_others_go_on_meanwhile(run: Run) -> None:
    async def main() -> tuple[str, bool]:
        gate = Gate()
        async with Switch() as switch:
            promise = switch.fork_promise(run_in_thread, gate)
            await gate.begun
            await sleep(0.001)
            was_resolved = promise.is_resolved
            gate.opened.set()
            return await promise, was_resolved
        raise AssertionError

    assert run(main) == ("passed", False)


def test_a_call_is_made_off_the_loops_thread_with_its_arguments(run: Run) -> None:
    async def main() -> tuple[int, str]:
        return await run_in_thread(lambda a, b: (threading.get_ident(), a + b), "a", "b")

    thread, text = run(main)
    assert thread != threading.get_ident()
    assert text == "ab"


@pytest.mark.parametrize("cancellable", [False, True])
def test_the_calls_exception_is_raised_as_itself(run: Run, cancellable: bool) -> None:
    error = ValueError("in the thread")

    def fail() -> None:
        raise error

    async def main() -> None:
        await run_in_thread(fail, cancellable=cancellable)

    with pytest.raises(ValueError, match="in the thread") as raised:
        run(main)
    assert raised.value is error
    assert "fail" in [entry.name for entry in raised.traceback]


@pytest.mark.parametrize("cancellable", [False, True])
def test_a_call_that_ends_by_stop_iteration_fails_and_does_not_hang(run: Run, cancellable: bool) -> None:
    async def main() -> None:
        await run_in_thread(next, iter(()), cancellable=cancellable)

    with pytest.raises(RuntimeError, match="StopIteration"):
        run(main)


def test_context_variables_are_copied_in_and_do_not_flow_back(run: Run) -> None:  # S12, S60
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def change() -> str:
        before = variable.get()
        variable.set("changed")
        return before

    async def main() -> tuple[str, str]:
        variable.set("the fiber's")
        return await run_in_thread(change), variable.get()

    assert run(main) == ("the fiber's", "the fiber's")


def test_a_cancelled_call_is_waited_for_and_its_result_returned(run: Run) -> None:  # S60
    async def main() -> list[str]:
        gate = Gate()
        results: list[str] = []

        async def call() -> None:
            results.append(await run_in_thread(gate))
            with pytest.raises(Cancelled):
                fiber.check()

        async with Switch() as switch:
            switch.fork(call)
            await gate.begun
            switch.cancel()
            asyncio.get_running_loop().call_soon(gate.opened.set)
        return results

    assert run(main) == ["passed"]


def test_a_cancellable_call_is_abandoned_and_its_result_dropped(run: Run) -> None:  # S60
    async def main() -> None:
        gate = Gate()
        with CancelScope() as scope:
            async with Switch() as switch:
                switch.fork(lambda: run_in_thread(gate, cancellable=True))
                await gate.begun
                scope.cancel()
        assert scope.cancelled
        assert not gate.has_ended.is_set()
        gate.opened.set()
        await run_in_thread(gate.has_ended.wait)
        fiber.check()

    run(main)


def test_an_abandoned_call_may_outlive_its_loop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", complaints.append)
    gate = Gate()

    async def main() -> None:
        with move_on_after(0.001):
            await run_in_thread(gate, cancellable=True)
        await gate.begun

    run(main)
    (thread,) = [thread for thread in threading.enumerate() if thread.name.startswith("run_in_thread")]
    gate.opened.set()
    thread.join(PATIENCE_SECONDS)
    assert complaints == []


def test_a_cancelled_context_makes_no_call(run: Run) -> None:  # S8
    async def main() -> list[int]:
        calls: list[int] = []
        with CancelScope() as scope:
            scope.cancel()
            with pytest.raises(Cancelled):
                await run_in_thread(calls.append, 1)
        return calls

    assert run(main) == []


def test_a_foreign_cancel_waits_for_the_call_and_is_raised_then(run: Run) -> None:
    async def main() -> bool:
        gate = Gate()
        task = asyncio.ensure_future(run_in_thread(gate))
        await gate.begun
        for _ in range(3):  # insisting changes nothing
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        gate.opened.set()
        await asyncio.wait([task])
        assert gate.has_ended.is_set()
        return task.cancelled()

    assert run(main) is True


def test_no_more_threads_run_at_once_than_allowed(run: Run) -> None:
    async def main() -> tuple[int, list[int]]:
        lock = threading.Lock()
        running = most = 0
        begun: list[int] = []
        all_run = threading.Event()

        def call(number: int) -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                begun.append(number)
                if running == THREADS_AT_ONCE:
                    all_run.set()
            assert all_run.wait(PATIENCE_SECONDS)
            with lock:
                running -= 1

        await fiber.iter(lambda number: run_in_thread(call, number), range(2 * THREADS_AT_ONCE))
        return most, begun

    most, begun = run(main)
    assert most == THREADS_AT_ONCE
    assert sorted(begun[:THREADS_AT_ONCE]) == list(range(THREADS_AT_ONCE))
    assert sorted(begun) == list(range(2 * THREADS_AT_ONCE))


def test_a_call_that_waits_for_a_thread_is_just_cancelled(run: Run) -> None:
    async def main() -> list[str]:
        calls: list[str] = []
        gates = [Gate() for _ in range(THREADS_AT_ONCE)]
        async with Switch() as switch:
            for gate in gates:
                switch.fork(run_in_thread, gate)
            for gate in gates:
                await gate.begun
            with pytest.raises(TimeoutError), timeout(0.001):
                await run_in_thread(calls.append, "should not be called")
            for gate in gates:
                gate.opened.set()
        await run_in_thread(calls.append, "called")
        return calls

    assert run(main) == ["called"]


@pytest.mark.parametrize("started", [True, False])
def test_a_start_that_is_interrupted_gives_its_permit_back_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    start = CallThread.start
    ended = threading.Event()

    def interrupted(thread: CallThread) -> None:
        if started:
            start(thread)
            assert ended.wait(PATIENCE_SECONDS)
            thread.join()
        raise KeyboardInterrupt("as it started")

    async def main() -> int:
        with monkeypatch.context() as patch:
            patch.setattr(CallThread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt, match="as it started"):
                await run_in_thread(ended.set)
        await run_in_thread(int)
        return _calls[asyncio.get_running_loop()].permits.value

    assert run(main) == THREADS_AT_ONCE


def test_a_thread_that_cannot_be_made_keeps_no_permit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    async def main() -> int:
        with monkeypatch.context() as patch:
            patch.setattr(CallThread, "__init__", no_memory)
            with pytest.raises(MemoryError):
                await run_in_thread(int)
        return _calls[asyncio.get_running_loop()].permits.value

    assert run(main) == THREADS_AT_ONCE


def test_of_eight_threads_that_resolve_one_promise_exactly_one_does(run: Run) -> None:  # S34
    rounds = 100

    async def main() -> None:
        barrier = threading.Barrier(THREADS)
        resolvers: list[Resolver[int]] = []
        promises: list[Promise[int]] = []
        for _ in range(rounds):
            promise: Promise[int]
            promise, resolver = Promise.create()
            promises.append(promise)
            resolvers.append(resolver)

        def race(number: int) -> list[bool]:
            won = []
            for resolver in resolvers:
                barrier.wait(PATIENCE_SECONDS)
                won.append(resolver.try_resolve(number))
            return won

        async def all_values() -> list[int]:
            return [await promise for promise in promises]

        async with Switch() as switch:
            waiters = [switch.fork_promise(all_values) for _ in range(3)]
            outcomes = await fiber.map(lambda number: run_in_thread(race, number), range(THREADS))
            winners = [[number for number in range(THREADS) if outcomes[number][turn]] for turn in range(rounds)]
            assert all(len(winner) == 1 for winner in winners)
            for waiter in waiters:
                assert await waiter == [winner[0] for winner in winners]

    run(main)


def test_eight_threads_resolve_promises_that_fibers_await(run: Run) -> None:  # S33
    each = 200

    async def main() -> list[int]:
        pairs = [Promise.create() for _ in range(THREADS * each)]

        def resolve(first: int) -> None:
            for index in range(first, len(pairs), THREADS):
                pairs[index][1].resolve(index)

        async def wait(index: int) -> int:
            value: Any = await pairs[index][0]
            assert isinstance(value, int)
            return value

        async with Switch() as switch:
            for first in range(THREADS):
                switch.fork(run_in_thread, resolve, first)
            return await fiber.map(wait, range(len(pairs)))
        raise AssertionError

    assert run(main) == list(range(THREADS * each))


def test_a_failure_from_a_thread_reaches_every_awaiter(run: Run) -> None:
    async def main() -> list[str]:
        promise: Promise[None]
        promise, resolver = Promise.create()

        async def wait() -> str:
            with pytest.raises(ValueError) as raised:
                await promise
            return str(raised.value)

        async with Switch() as switch:
            waiters = [switch.fork_promise(wait) for _ in range(3)]
            await fiber.yield_now()
            await run_in_thread(resolver.fail, ValueError("from a thread"))
            return [await waiter for waiter in waiters]
        raise AssertionError

    assert run(main) == ["from a thread"] * 3


def test_resolving_twice_from_threads_raises_there(run: Run) -> None:  # S34
    async def main() -> None:
        _, resolver = Promise.create("twice")
        await run_in_thread(resolver.resolve, 1)
        with pytest.raises(AlreadyResolved, match="twice"):
            await run_in_thread(resolver.resolve, 2)

    run(main)


def test_a_wait_that_a_thread_completes_while_it_is_cancelled_is_one_or_the_other(run: Run) -> None:
    rounds = 300

    async def main() -> tuple[int, int]:
        resolved = cancelled = 0
        queue: list[Resolver[None]] = []
        todo = threading.Semaphore(0)

        def resolve() -> None:
            for _ in range(rounds):
                assert todo.acquire(timeout=PATIENCE_SECONDS)
                queue.pop().resolve(None)

        async with Switch() as switch:
            switch.fork(run_in_thread, resolve)
            for _ in range(rounds):
                promise: Promise[None]
                promise, resolver = Promise.create()
                queue.append(resolver)
                with CancelScope() as scope:
                    asyncio.get_running_loop().call_soon(scope.cancel)
                    todo.release()
                    await promise
                    resolved += 1
                cancelled += scope.cancelled
                await promise  # the promise is resolved all the same
        return resolved, cancelled

    resolved, cancelled = run(main)
    assert resolved + cancelled == rounds


def test_a_call_from_a_plain_task() -> None:
    async def main() -> int:
        return await run_in_thread(len, "four")

    assert asyncio.run(main()) == 4
