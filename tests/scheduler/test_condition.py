"""Conditions: no broadcast is missed, the mutex is held again, from anywhere (S51 to S53)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest

from domains import Cancelled, CancelScope, Condition, Mutex, Poisoned, Switch, fiber
from domains.scheduler.run import run


class Broken(Exception):
    """Raised inside a critical section."""


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await fiber.yield_now()


async def test_wait_lets_go_of_the_mutex_and_holds_it_again() -> None:  # S51
    mutex, condition = Mutex(), Condition("news")
    trace: list[str] = []

    async def waiter() -> None:
        async with mutex.rw():
            trace.append("waits")
            await condition.wait(mutex)
            trace.append("woken")
            assert not mutex.try_lock()

    async with Switch() as switch:
        switch.fork(waiter)
        await turns()
        assert repr(condition) == "<condition 'news', 1 waiting>"
        async with mutex.rw():
            condition.broadcast()
            await turns()
            trace.append("still locked")
    assert trace == ["waits", "still locked", "woken"]


async def test_a_cancelled_wait_holds_the_mutex_again_before_it_raises() -> None:  # S51
    mutex, condition = Mutex(), Condition()
    scope = CancelScope()
    trace: list[str] = []

    async def waiter() -> None:
        with scope:
            async with mutex.ro():
                try:
                    await condition.wait(mutex)
                except Cancelled:
                    trace.append("cancelled")
                    assert mutex._is_mine()
                    raise

    async with Switch() as switch:
        switch.fork(waiter)
        await turns()
        async with mutex.ro():
            scope.cancel()
            await turns()
            assert trace == [], "the lock cannot be cancelled, and is waited for"
    assert trace == ["cancelled"]
    assert scope.cancelled
    assert not mutex.is_locked


async def test_a_foreign_cancel_while_locking_again_is_raised_when_it_is_held() -> None:  # S51
    mutex, condition = Mutex(), Condition()

    async def waiter() -> None:
        async with mutex.ro():
            try:
                await condition.wait(mutex)
            finally:
                assert mutex._is_mine()

    task = asyncio.create_task(waiter())
    await turns()
    async with mutex.ro():
        condition.broadcast()
        await turns()
        task.cancel()
        await turns()
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not mutex.is_locked


async def test_waiting_without_the_mutex_raises_and_leaves_no_waiter() -> None:  # S51
    mutex, condition = Mutex(), Condition()
    async with Switch() as switch:
        await mutex.lock()

        async def stranger() -> None:
            with pytest.raises(RuntimeError, match="holder"):
                await condition.wait(mutex)

        switch.fork(stranger)
        await turns()
        mutex.unlock()
    assert repr(condition) == "<condition, 0 waiting>"


async def test_waiting_in_a_cancelled_context_keeps_the_mutex() -> None:  # S8 S51
    mutex, condition = Mutex(), Condition()
    async with mutex.ro():
        with CancelScope() as scope:
            scope.cancel()
            with pytest.raises(Cancelled):
                await condition.wait(mutex)
        assert mutex._is_mine()


async def test_waiting_in_a_cancelled_context_without_the_mutex_leaves_it_alone() -> None:  # S8 S51
    mutex = Mutex()
    with CancelScope() as scope:
        scope.cancel()
        await Condition().wait(mutex)
    assert scope.cancelled
    assert not mutex.is_locked


async def test_a_mutex_poisoned_meanwhile_is_told_to_the_waiter() -> None:  # S51
    mutex, condition = Mutex(), Condition()

    async def waiter() -> None:
        async with mutex.rw():
            await condition.wait(mutex)

    async with Switch() as switch:
        waiting = switch.fork_promise(waiter)
        await turns()
        with pytest.raises(Broken):
            async with mutex.rw():
                condition.broadcast()
                raise Broken
        with pytest.raises(Poisoned):
            await waiting


async def test_a_broadcast_wakes_those_who_wait_at_that_moment_in_order() -> None:  # S52
    condition = Condition()
    trace: list[int] = []

    async def waiter(number: int) -> None:
        await condition.wait_no_mutex()
        trace.append(number)

    async with Switch() as switch:
        condition.broadcast()  # nobody waits: nothing is left of it
        for number in range(3):
            switch.fork(waiter, number)
        await turns()
        condition.broadcast()
        switch.fork_daemon(waiter, 3)
        await turns()
        assert trace == [0, 1, 2]


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, None])
def test_a_broadcast_from_a_signal_handler_wakes_a_sleeping_loop(loop_factory: object) -> None:  # S52
    condition = Condition()

    async def main() -> str:
        async with Switch() as switch:
            switch.fork(condition.wait_no_mutex)
            await turns()
            threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGUSR2]).start()
        return "woken"

    previous = signal.signal(signal.SIGUSR2, lambda *_: condition.broadcast())
    try:
        assert (run(main, loop_factory=loop_factory) if callable(loop_factory) else run(main)) == "woken"
    finally:
        signal.signal(signal.SIGUSR2, previous)


def test_broadcasts_from_eight_threads_wake_everybody() -> None:  # S52
    condition = Condition()
    rounds = 50

    async def main() -> int:
        woken = 0
        stop = threading.Event()

        def broadcast() -> None:
            while not stop.is_set():
                condition.broadcast()
                stop.wait(0.0005)

        async def waiter() -> None:
            nonlocal woken
            for _ in range(rounds):
                await condition.wait_no_mutex()
                woken += 1

        threads = [threading.Thread(target=broadcast) for _ in range(8)]
        for thread in threads:
            thread.start()
        async with Switch() as switch:
            for _ in range(4):
                switch.fork(waiter)
        stop.set()
        for thread in threads:
            thread.join()
        return woken

    assert run(main) == 4 * rounds


@pytest.mark.parametrize("is_async", [False, True])
async def test_loop_no_mutex_misses_no_broadcast(is_async: bool) -> None:  # S53
    condition = Condition()
    calls: list[int] = []

    def read() -> str | None:
        calls.append(len(calls))
        if len(calls) == 1:
            condition.broadcast()  # comes between the reading and the wait
        return "seen" if len(calls) == 2 else None

    async def read_async() -> str | None:
        return read()

    assert await (condition.loop_no_mutex(read_async) if is_async else condition.loop_no_mutex(read)) == "seen"
    assert calls == [0, 1]
    assert repr(condition) == "<condition, 0 waiting>"


async def test_a_cancelled_loop_leaves_no_registration() -> None:  # S53
    condition = Condition()
    calls = 0

    def read() -> None:
        nonlocal calls
        calls += 1

    async with Switch() as switch:
        switch.fork(condition.loop_no_mutex, read)
        await turns()
        switch.cancel()
    assert calls == 1
    assert repr(condition) == "<condition, 0 waiting>"


async def test_a_loop_in_a_cancelled_context_does_not_begin() -> None:  # S8 S53
    with CancelScope() as scope:
        scope.cancel()
        await Condition().loop_no_mutex(lambda: pytest.fail("was called"))
    assert scope.cancelled


async def test_a_broadcast_and_a_cancellation_in_one_turn_do_one_thing() -> None:  # S53
    condition = Condition()
    trace: list[str] = []

    async def loop() -> None:
        try:
            await condition.loop_no_mutex(lambda: trace.append("called") or ("done" if len(trace) > 1 else None))
            trace.append("returned")
        except Cancelled:
            trace.append("cancelled")
            raise

    async with Switch() as switch:
        switch.fork(loop)
        await turns()
        condition.broadcast()
        switch.cancel()
    assert trace == ["called", "called", "returned"]


async def test_what_f_raises_comes_out_of_the_loop() -> None:  # S53
    condition = Condition()

    def read() -> None:
        raise Broken

    with pytest.raises(Broken):
        await condition.loop_no_mutex(read)
    assert repr(condition) == "<condition, 0 waiting>"
