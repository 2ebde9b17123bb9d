"""Lazy values (S56)."""

from __future__ import annotations

from typing import Any

import pytest

from domains import Cancelled, CancelScope, Lazy, Switch, fiber


class Broken(Exception):
    """Raised by a lazy value's function."""


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await fiber.yield_now()


async def test_concurrent_forcers_share_one_run() -> None:  # S56
    runs = 0

    async def compute() -> object:
        nonlocal runs
        runs += 1
        await turns()
        return object()

    lazy = Lazy(compute, label="settings")
    assert repr(lazy) == "<lazy 'settings', unforced>"
    async with Switch() as switch:
        promises = [switch.fork_promise(lazy.force) for _ in range(3)]
        await turns(2)
        assert repr(lazy) == "<lazy 'settings', running>"
        results = [await promise for promise in promises]
    assert runs == 1
    assert results[0] is results[1] is results[2] is await lazy.force()
    assert lazy.is_forced
    assert repr(lazy) == "<lazy 'settings', forced>"


async def test_a_plain_function_will_do() -> None:
    assert await Lazy(lambda: 5).force() == 5


async def test_what_a_plain_function_returns_is_awaited_if_it_can_be() -> None:
    assert await Lazy(fiber.yield_now).force() is None
    assert await Lazy(lambda: turns(1)).force() is None


async def test_a_failure_is_everybodys() -> None:  # S56
    runs = 0

    def compute() -> None:
        nonlocal runs
        runs += 1
        raise Broken

    lazy = Lazy(compute)
    for _ in range(2):
        with pytest.raises(Broken):
            await lazy.force()
    assert runs == 1


async def cancelled_run(policy: Any) -> tuple[list[Any], int]:
    """Three forcers, of whom the first, which runs the function, is cancelled; what each came to, and the runs."""
    runs = 0
    outcomes: list[Any] = [None] * 3
    scope = CancelScope()

    async def compute() -> int:
        nonlocal runs
        runs += 1
        await turns(5)
        return runs

    lazy = Lazy(compute, policy)

    async def force(index: int) -> None:
        try:
            outcomes[index] = await lazy.force()
        except Cancelled:
            outcomes[index] = "cancelled"
            fiber.check()

    async def first() -> None:
        with scope:
            await force(0)

    async with Switch() as switch:
        switch.fork(first)
        switch.fork(force, 1)
        switch.fork(force, 2)
        await turns(2)
        scope.cancel()
    return outcomes, runs


async def test_protect_finishes_the_run_for_the_others() -> None:  # S56
    assert await cancelled_run("protect") == ([1, 1, 1], 1)


async def test_restart_lets_the_next_run_it_anew() -> None:  # S56
    assert await cancelled_run("restart") == (["cancelled", 2, 2], 2)


async def test_record_gives_everybody_the_cancelled() -> None:  # S56
    assert await cancelled_run("record") == (["cancelled", "cancelled", "cancelled"], 1)


async def test_forcing_itself_is_an_error_not_a_hang() -> None:
    async def compute() -> int:
        return await lazy.force()

    lazy: Lazy[int] = Lazy(compute)
    with pytest.raises(RuntimeError, match="wait forever"):
        await lazy.force()


async def test_in_a_cancelled_context_nothing_is_run() -> None:  # S8
    lazy = Lazy(lambda: pytest.fail("it ran"))
    with CancelScope() as scope:
        scope.cancel()
        with pytest.raises(Cancelled):
            await lazy.force()
    assert not lazy.is_forced


def test_an_unknown_policy_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="restart"):
        Lazy(int, "ignore")  # type: ignore[arg-type]
