"""Pools of resources (S54, S55)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from domains import CancelScope, Pool, Switch, fiber


class Broken(Exception):
    """Raised by what a pool calls."""


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await fiber.yield_now()


def numbers() -> Any:
    counter = itertools.count()
    return lambda: next(counter)


async def test_resources_are_made_on_demand_and_shared() -> None:  # S54
    pool: Pool[int] = Pool(2, numbers(), label="connections")
    async with pool.use() as first, pool.use() as second:
        assert (first, second) == (0, 1)
        assert repr(pool) == "<pool 'connections' of 2, 2 in use, 0 waiting>"
    async with pool.use() as again:
        assert again in (0, 1)


async def test_waiters_are_served_in_order() -> None:  # S54
    pool: Pool[int] = Pool(1, numbers())
    trace: list[str] = []

    async def user(name: str) -> None:
        async with pool.use():
            trace.append(name)
            await turns()

    async with Switch() as switch:
        for name in "abc":
            switch.fork(user, name)
    assert trace == ["a", "b", "c"]


async def test_an_exception_in_the_block_returns_the_resource() -> None:  # S54
    pool: Pool[int] = Pool(1, numbers())
    with pytest.raises(Broken):
        async with pool.use():
            raise Broken
    async with pool.use() as resource:
        assert resource == 0


async def test_a_failed_creation_is_its_askers_and_the_next_tries_again() -> None:  # S54
    attempts = 0

    async def create() -> int:
        nonlocal attempts
        attempts += 1
        await turns()
        if attempts == 1:
            raise Broken
        return attempts

    pool = Pool(1, create)

    async def use() -> int:
        async with pool.use() as resource:
            return resource

    async with Switch() as switch:
        first, second = switch.fork_promise(use), switch.fork_promise(use)
        with pytest.raises(Broken):
            await first
        assert await second == 2


async def test_a_cancelled_creation_frees_its_place() -> None:  # S54
    async def create() -> int:
        await turns(5)
        return 1

    pool = Pool(1, create)
    with CancelScope() as scope:
        async with Switch() as switch:

            async def use() -> None:
                async with pool.use():
                    raise AssertionError

            switch.fork(use)
            await turns()
            scope.cancel()
    async with pool.use() as resource:
        assert resource == 1


async def test_an_invalid_resource_is_disposed_of_and_replaced() -> None:  # S54
    disposed: list[int] = []
    bad: set[int] = set()
    pool: Pool[int] = Pool(1, numbers(), validate=lambda x: x not in bad, dispose=disposed.append)
    async with pool.use() as resource:
        bad.add(resource)
    async with pool.use() as resource:
        assert resource == 1
    assert disposed == [0]


async def test_a_failing_dispose_is_raised_once_and_the_place_is_usable() -> None:  # S54
    def dispose(_: int) -> None:
        raise Broken

    valid = False
    pool: Pool[int] = Pool(1, numbers(), validate=lambda _: valid, dispose=dispose)
    async with pool.use():
        pass
    with pytest.raises(Broken):
        async with pool.use():
            raise AssertionError
    async with pool.use() as resource:
        assert resource == 1


async def test_a_failing_validate_keeps_the_resource_for_the_next() -> None:  # S54
    fails = True

    def validate(_: int) -> bool:
        if fails:
            raise Broken
        return True

    pool: Pool[int] = Pool(1, numbers(), validate=validate)
    async with pool.use():
        pass
    with pytest.raises(Broken):
        async with pool.use():
            raise AssertionError
    fails = False
    async with pool.use() as resource:
        assert resource == 0


async def test_a_surplus_resource_is_disposed_of_when_returned() -> None:  # S55
    disposed: list[int] = []
    pool: Pool[int] = Pool(1, numbers(), dispose=disposed.append)
    async with pool.use() as first:
        async with pool.use(never_wait=True) as surplus:
            assert (first, surplus) == (0, 1)
        assert disposed == [1]
    async with pool.use(never_wait=True) as resource:
        assert resource == 0
    assert disposed == [1]


async def test_disposal_is_protected_from_cancellation() -> None:  # S55
    trace: list[str] = []

    async def dispose(_: int) -> None:
        trace.append("begun")
        await turns()
        trace.append("finished")

    pool: Pool[int] = Pool(1, numbers(), dispose=dispose)
    with CancelScope() as scope:
        async with pool.use(), pool.use(never_wait=True):
            scope.cancel()
            await fiber.yield_now()
    assert trace == ["begun", "finished"]


@pytest.mark.parametrize("size", [1.0, None, True])
def test_a_size_that_is_no_int_is_a_type_error(size: Any) -> None:
    with pytest.raises(TypeError, match="size"):
        Pool(size, object)


def test_a_size_below_one_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Pool(0, object)
