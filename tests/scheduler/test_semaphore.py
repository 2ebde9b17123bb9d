"""Semaphores: order, permits, limits (S49, S50)."""

from __future__ import annotations

from typing import Any

import pytest

from domains import Cancelled, CancelScope, Semaphore, Switch, fiber


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await fiber.yield_now()


async def test_permits_are_given_in_the_order_of_the_requests() -> None:  # S50
    semaphore = Semaphore(1)
    trace: list[int] = []

    async def work(number: int) -> None:
        async with semaphore:
            trace.append(number)
            await fiber.yield_now()

    async with Switch() as switch:
        for number in range(4):
            switch.fork(work, number)
    assert trace == [0, 1, 2, 3]
    assert semaphore.value == 1


async def test_at_most_n_hold_a_permit() -> None:
    semaphore = Semaphore(2)
    inside = most = 0

    async def work() -> None:
        nonlocal inside, most
        async with semaphore:
            inside += 1
            most = max(most, inside)
            await turns()
            inside -= 1

    async with Switch() as switch:
        for _ in range(7):
            switch.fork(work)
    assert most == 2


async def test_a_freed_permit_goes_to_who_waits_not_to_a_newcomer() -> None:  # S50
    semaphore = Semaphore(1)
    await semaphore.acquire()
    trace: list[str] = []

    async def acquire(name: str) -> None:
        await semaphore.acquire()
        trace.append(name)

    async with Switch() as switch:
        switch.fork(acquire, "waiting")
        await turns()
        semaphore.release()
        assert semaphore.value == 0
        switch.fork(acquire, "newcomer")
        await turns()
        assert trace == ["waiting"]
        semaphore.release()


async def test_a_release_too_many_raises_unless_unbounded() -> None:  # S50
    semaphore = Semaphore(1, label="connections")
    with pytest.raises(ValueError, match=r"'connections'.*too often"):
        semaphore.release()
    assert semaphore.value == 1
    unbounded = Semaphore(1, bounded=False)
    unbounded.release()
    assert unbounded.value == 2


async def test_a_release_too_many_raises_while_somebody_waits() -> None:  # S50
    semaphore = Semaphore(0)
    async with Switch() as switch:
        switch.fork(semaphore.acquire)
        await turns()
        with pytest.raises(ValueError, match="too often"):
            semaphore.release()
        assert repr(semaphore) == "<semaphore, 0 free, 1 waiting>"
        switch.cancel()


async def test_a_cancelled_acquire_holds_nothing() -> None:  # S49
    semaphore = Semaphore(0, bounded=False)
    scope = CancelScope()

    async def acquire() -> None:
        with scope:
            await semaphore.acquire()

    async with Switch() as switch:
        switch.fork(acquire)
        await turns()
        scope.cancel()
        semaphore.release()
    assert scope.cancelled
    assert semaphore.value == 1


async def test_in_a_cancelled_context_acquire_takes_nothing() -> None:  # S8
    semaphore = Semaphore(1)
    with CancelScope() as scope:
        scope.cancel()
        with pytest.raises(Cancelled):
            await semaphore.acquire()
    assert semaphore.value == 1
    assert repr(semaphore) == "<semaphore, 1 free, 0 waiting>"


@pytest.mark.parametrize("n", [1.0, "1", None, False])
def test_a_count_that_is_no_int_is_a_type_error(n: Any) -> None:
    with pytest.raises(TypeError, match="n must be an int"):
        Semaphore(n)


def test_a_negative_count_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Semaphore(-1)
