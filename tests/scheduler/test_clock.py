"""Sleeping, and the heap of deadlines under it (S57)."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import weakref
from typing import Any

import pytest

from domains import Cancelled, CancelScope, Switch, fiber, move_on_after
from domains.scheduler.clock import Clock, sleep, sleep_until
from domains.scheduler.timers import Timer, set_timer

from .conftest import Run


def now() -> float:
    return asyncio.get_running_loop().time()


async def order_of_waking(offsets: list[float]) -> list[int]:
    """The order in which sleepers wake whose deadlines are so far apart; again, if some came after their deadline."""
    margin = 0.005
    while True:
        woken: list[int] = []
        late: list[int] = []
        first = now() + margin

        async def nap(number: int, deadline: float, woken: list[int], late: list[int]) -> None:
            if now() >= deadline:
                late.append(number)
            await sleep_until(deadline)
            woken.append(number)

        async with Switch() as switch:
            for number, offset in enumerate(offsets):
                switch.fork(nap, number, first + offset, woken, late)
        if not late:
            return woken
        margin *= 4


def test_sleepers_wake_in_the_order_of_their_deadlines(run_timed: Run) -> None:  # S57
    order = list(range(50))
    random.Random(1).shuffle(order)

    async def main() -> None:
        woken = await order_of_waking([place / 10000 for place in order])
        assert [order[number] for number in woken] == list(range(50))

    run_timed(main)


def test_equal_deadlines_wake_in_the_order_of_the_sleeps(run_timed: Run) -> None:  # S57
    async def main() -> None:
        woken = await order_of_waking([0.002 if number % 3 == 0 else 0 for number in range(100)])
        assert woken == [n for n in range(100) if n % 3] + [n for n in range(100) if n % 3 == 0]

    run_timed(main)


@pytest.mark.parametrize("seconds", [0, -1, -0.5, -math.inf])
def test_a_sleep_of_zero_or_less_yields_once(run_timed: Run, seconds: float) -> None:  # S57
    trace: list[str] = []

    async def other() -> None:
        for number in range(3):
            trace.append(f"other {number}")
            await fiber.yield_now()

    async def main() -> None:
        async with Switch() as switch:
            switch.fork(other)
            await sleep(seconds)
            trace.append("slept")
            await sleep_until(now() + seconds)
            trace.append("slept until")

    run_timed(main)
    assert trace == ["other 0", "slept", "other 1", "slept until", "other 2"]


def test_nan_is_refused(run_timed: Run) -> None:  # S57
    async def main() -> None:
        for f in (sleep, sleep_until, Clock().sleep, Clock().sleep_until):
            with pytest.raises(ValueError, match="NaN"):
                await f(math.nan)

    run_timed(main)


def test_infinity_waits_until_cancelled(run_timed: Run) -> None:  # S57
    async def main() -> None:
        with move_on_after(0.002) as scope:
            async with Switch() as switch:
                switch.fork(sleep, math.inf)
                await sleep_until(math.inf)
        assert scope.cancelled

    run_timed(main)


def test_a_cancelled_sleep_ends_at_once_and_leaves_no_timer(run_timed: Run) -> None:  # S57
    async def main() -> None:
        async with Switch() as switch:
            for _ in range(500):
                switch.fork(sleep, 1000)
            await fiber.yield_now()
            await fiber.yield_now()
            switch.cancel()
        timers = set_timer(now() + 1000, lambda _: None, None)._timers
        assert len(timers._heap) == 1
        timers._heap[0][2].cancel()
        assert timers._heap == []
        assert timers._handle is None

    run_timed(main)


def test_the_clock_of_the_environment_is_the_loops(run_timed: Run) -> None:  # S57
    async def main() -> None:
        clock = Clock()
        began = clock.now()
        assert began <= now()
        await clock.sleep(0.002)
        await clock.sleep_until(began + 0.004)
        assert clock.now() >= began + 0.003
        with CancelScope() as scope:
            scope.cancel()
            for seconds in (0, 1):
                with pytest.raises(Cancelled):
                    await clock.sleep(seconds)

    run_timed(main)


# Timers


def test_timers_may_be_set_and_cancelled_by_timers(run_timed: Run) -> None:  # S57
    trace: list[str] = []

    async def main() -> None:
        base = now() + 0.002
        timers: dict[str, Timer] = {}

        def due(name: str) -> None:
            trace.append(name)
            timers[name].cancel()  # too late: nothing happens
            if name == "a":
                timers["b"].cancel()
                timers["b"].cancel()
                timers["x"] = set_timer(base, due, "x")
                timers["y"] = set_timer(base - 1000, due, "y")
            if name == "c":
                done.set()

        done = asyncio.Event()
        for index, name in enumerate("abc"):
            timers[name] = set_timer(base + index / 1000, due, name)
        assert "due at" in repr(timers["a"])
        await done.wait()
        assert not timers["b"].run()

    run_timed(main)
    assert trace == ["a", "y", "x", "c"]


def test_an_earlier_deadline_is_not_late_behind_a_later_one(run_timed: Run) -> None:  # S57
    trace: list[str] = []

    async def main() -> None:
        with move_on_after(1000):
            async with Switch() as switch:
                switch.fork(sleep, 500)
                await fiber.yield_now()
                await sleep(0.001)
                trace.append("woke")
                switch.cancel()

    run_timed(main)
    assert trace == ["woke"]


def test_random_timers_run_in_order_and_only_if_they_were_not_cancelled(run_timed: Run) -> None:  # S57
    random_ = random.Random(57)
    ran: list[tuple[float, int]] = []
    expected: list[tuple[float, int]] = []

    async def main() -> None:
        base = now()
        timers: list[tuple[tuple[float, int], Timer]] = []
        for number in range(3000):
            entry = (base + random_.randrange(20) / 1000, number)
            timers.append((entry, set_timer(entry[0], ran.append, entry)))
        for entry, timer in timers:
            if random_.random() < 0.7:
                timer.cancel()
            else:
                expected.append(entry)
        await sleep_until(base + 0.02)
        await sleep(0.001)

    run_timed(main)
    assert ran == sorted(expected)


def test_many_timers_that_are_cancelled_are_swept(run_timed: Run) -> None:  # S57
    async def main() -> None:
        kept = [set_timer(now() + 1000 + number, lambda _: None, None) for number in range(10)]
        timers = kept[0]._timers
        for _ in range(10_000):
            set_timer(now() + 500, lambda _: None, None).cancel()
            assert len(timers._heap) < 200
        for timer in kept:
            timer.cancel()

    run_timed(main)


def test_a_sweep_inside_a_callback_loses_no_timer(run_timed: Run) -> None:  # S57
    ran: list[int] = []

    async def main() -> None:
        base = now() + 0.002
        done = asyncio.Event()

        def cancel_many(_: None) -> None:
            for timer in doomed:
                timer.cancel()

        set_timer(base, cancel_many, None)
        doomed = [set_timer(base + (number % 2) / 1000, ran.append, -1) for number in range(500)]
        for number in range(20):
            set_timer(base + 0.001, ran.append, number)
        set_timer(base + 0.001, lambda _: done.set(), None)
        await done.wait()

    run_timed(main)
    assert ran == list(range(20))


def test_a_callback_that_raises_holds_up_no_other_timer(run_timed: Run, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[str] = []

    async def main() -> None:
        done = asyncio.Event()
        base = now() + 0.001

        def interrupted(_: None) -> None:
            raise KeyError("of a signal handler")

        def due(_: None) -> None:
            ran.append("due")
            done.set()

        set_timer(base, interrupted, None)
        set_timer(base, due, None)
        otherwise = asyncio.get_running_loop().call_later(10, done.set)
        await done.wait()
        otherwise.cancel()

    run_timed(main)
    assert ran == ["due"]
    assert "of a signal handler" in caplog.text


def test_a_closed_loop_is_not_kept(run_timed: Run) -> None:  # S57
    loops: list[weakref.ref[Any]] = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        with move_on_after(1000):
            await sleep(0.001)

    run_timed(main)
    run_timed(main)
    gc.collect()
    assert loops[0]() is None
