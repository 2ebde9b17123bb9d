"""Mutexes: hand-over, ownership, poison (S44 to S49)."""

from __future__ import annotations

import asyncio

import pytest

from domains import Cancelled, CancelScope, Mutex, Poisoned, Promise, Switch, fiber


class Broken(Exception):
    """Raised inside a critical section."""


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await fiber.yield_now()


async def test_the_lock_is_handed_over_in_the_order_of_the_requests() -> None:  # S44
    mutex = Mutex()
    trace: list[int] = []

    async def section(number: int) -> None:
        async with mutex.rw():
            trace.append(number)
            await fiber.yield_now()
            trace.append(number)

    async with Switch() as switch:
        for number in range(4):
            switch.fork(section, number)
    assert trace == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_nobody_gets_in_between_unlock_and_the_next_holder() -> None:  # S44
    mutex = Mutex()
    await mutex.lock()
    async with Switch() as switch:
        locked = switch.fork_promise(mutex.lock)
        await turns()
        mutex.unlock()
        assert not mutex.try_lock()
        assert mutex.is_locked
        await locked


async def test_unlocking_what_is_not_locked_raises_and_poisons() -> None:  # S45
    mutex = Mutex("accounts")
    with pytest.raises(RuntimeError, match="accounts"):
        mutex.unlock()
    with pytest.raises(Poisoned) as caught:
        await mutex.lock()
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(Poisoned):
        mutex.unlock()


async def test_unlocking_from_a_fiber_that_does_not_hold_it_changes_nothing() -> None:  # S45
    mutex = Mutex()
    await mutex.lock()

    async def thief() -> None:
        with pytest.raises(RuntimeError, match="holder"):
            mutex.unlock()

    async with Switch() as switch:
        switch.fork(thief)
    assert mutex.is_locked
    mutex.unlock()
    assert not mutex.is_locked


async def test_locking_twice_in_one_fiber_is_an_error_not_a_hang() -> None:
    mutex = Mutex()
    await mutex.lock()
    with pytest.raises(RuntimeError, match="wait forever"):
        await mutex.lock()
    mutex.unlock()


async def test_an_exception_in_a_writing_section_poisons_for_all() -> None:  # S46
    mutex = Mutex()

    async def fail() -> None:
        async with mutex.rw():
            await turns()
            raise Broken

    async with Switch() as switch:
        failing = switch.fork_promise(fail)
        waiting = switch.fork_promise(mutex.lock)
        with pytest.raises(Broken) as broken:
            await failing
        with pytest.raises(Poisoned) as caught:
            await waiting
        assert caught.value.__cause__ is broken.value
        with pytest.raises(Poisoned):
            await mutex.lock()
        with pytest.raises(Poisoned):
            mutex.try_lock()  # S48
    assert mutex.is_poisoned


@pytest.mark.parametrize("protect", [False, True])
async def test_being_cancelled_in_a_writing_section_poisons_unless_protected(protect: bool) -> None:  # S46
    mutex = Mutex()
    trace: list[str] = []

    async def write() -> None:
        async with mutex.rw(protect=protect):
            trace.append("begun")
            await turns()
            trace.append("finished")
        await fiber.yield_now()
        trace.append("went on")

    async with Switch() as switch:
        switch.fork(write)
        await fiber.yield_now()
        switch.cancel()
    assert trace == (["begun", "finished"] if protect else ["begun"])
    assert mutex.is_poisoned is not protect


async def test_waiting_for_a_protected_section_can_be_cancelled() -> None:  # S46
    mutex = Mutex()
    await mutex.lock()
    with CancelScope() as scope:
        async with Switch() as switch:

            async def write() -> None:
                async with mutex.rw(protect=True):
                    raise AssertionError

            switch.fork(write)
            await turns()
            scope.cancel()
    assert scope.cancelled
    mutex.unlock()
    assert not mutex.is_poisoned
    assert not mutex.is_locked


async def test_an_exception_in_a_reading_section_just_unlocks() -> None:  # S47
    mutex = Mutex()
    with pytest.raises(Broken):
        async with mutex.ro():
            raise Broken
    assert mutex.try_lock()
    mutex.unlock()


async def test_try_lock_never_waits() -> None:  # S48
    mutex = Mutex()
    assert mutex.try_lock()
    assert not mutex.try_lock()
    mutex.unlock()
    assert mutex.try_lock()
    mutex.unlock()


async def test_a_cancelled_lock_holds_nothing() -> None:  # S49
    mutex = Mutex()
    await mutex.lock()
    async with Switch() as switch:
        cancelled = switch.fork_promise(mutex.lock)
        scope = CancelScope()

        async def in_scope() -> None:
            with scope:
                await mutex.lock()

        switch.fork(in_scope)
        await turns()
        scope.cancel()
        mutex.unlock()
        await cancelled  # it came first, and was not cancelled
        assert scope.cancelled or not mutex.try_lock()
    assert scope.cancelled


async def test_a_lock_that_was_handed_over_before_the_cancellation_is_held() -> None:  # S9 S49
    mutex = Mutex()
    await mutex.lock()
    scope = CancelScope()
    held: list[bool] = []

    async def section() -> None:
        with scope:
            await mutex.lock()
            held.append(mutex.is_locked)
            mutex.unlock()

    async with Switch() as switch:
        switch.fork(section)
        await turns()
        mutex.unlock()
        scope.cancel()
    assert held == [True]
    assert not mutex.is_locked


async def test_a_foreign_cancel_at_the_hand_over_leaks_no_lock() -> None:  # S49
    mutex = Mutex()
    await mutex.lock()

    async def section() -> None:
        async with mutex.ro():
            await asyncio.sleep(0)

    task = asyncio.create_task(section())
    await turns()
    mutex.unlock()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not mutex.is_locked


async def test_in_a_cancelled_context_lock_raises_even_if_it_is_free() -> None:  # S8
    mutex = Mutex()
    with CancelScope() as scope:
        scope.cancel()
        with pytest.raises(Cancelled):
            await mutex.lock()
    assert not mutex.is_locked


async def test_its_repr_names_label_state_and_holder() -> None:
    mutex = Mutex("accounts")
    assert repr(mutex) == "<mutex 'accounts', free>"
    promise: Promise[None]
    promise, resolver = Promise.create()

    async def hold() -> None:
        async with mutex.rw():
            await promise

    async with Switch() as switch:
        switch.fork(hold, name="clerk")
        await turns()
        assert repr(mutex) == "<mutex 'accounts', held by fiber 'clerk', 0 waiting>"
        resolver.resolve(None)
    mutex._poison(Broken())
    assert "poisoned by Broken()" in repr(mutex)
