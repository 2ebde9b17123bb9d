"""The order in which fibers run: first come, first served, and the same on every run and every loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

from domains import (
    Cancelled,
    Closed,
    Condition,
    Mutex,
    Promise,
    Semaphore,
    Stream,
    Switch,
    fiber,
    move_on_after,
    protect,
    testing,
)
from domains.scheduler.clock import sleep
from domains.scheduler.run import event_loop_factory, run

from .conftest import Run

FIBERS = 200
RUNS = 50


def program(seed: int, trace: list[str], *, with_time: bool) -> Callable[[], Any]:
    """A program of 200 fibers that do everything to each other, and write down what they do."""
    chance = random.Random(seed)
    plans = [[chance.randrange(1000) for _ in range(6)] for _ in range(FIBERS)]

    async def main() -> None:
        streams = [Stream[int](capacity) for capacity in (0, 1, 3)]
        mutex, semaphore, condition = Mutex(), Semaphore(3), Condition()
        promises = [Promise[int].create() for _ in range(10)]

        async def step(number: int, choice: int, switch: Switch) -> None:
            kind, which = choice % 11, choice // 11
            if kind == 0:
                await fiber.yield_now()
            elif kind == 1:
                await streams[which % 3].add(number)
            elif kind == 2:
                trace.append(f"{number} takes {await streams[which % 3].take()}")
            elif kind == 3:
                async with mutex.ro():
                    await fiber.yield_now()
            elif kind == 4:
                async with semaphore:
                    await fiber.yield_now()
            elif kind == 5:
                condition.broadcast()
                promises[which % 10][1].try_resolve(number)
            elif kind == 6:
                trace.append(f"{number} gets {await promises[which % 10][0]}")
            elif kind == 7:
                results = await fiber.n_any([lambda: fiber.yield_now(), condition.wait_no_mutex])
                trace.append(f"{number} races for {len(results)}")
            elif kind == 8:
                async with Switch() as inner:
                    inner.fork_daemon(streams[which % 3].take)
                    inner.fork(fiber.yield_now)
            elif kind == 9:
                with contextlib.suppress(Cancelled), protect():
                    trace.append(str(await fiber.map(lambda x: x + number, range(3), max_fibers=2)))
            elif with_time:
                with move_on_after(which % 5) as scope:
                    await sleep(which % 7)
                trace.append(f"{number} slept {scope.cancelled}")
            else:
                await condition.wait_no_mutex()

        async def work(number: int, switch: Switch) -> None:
            try:
                for choice in plans[number]:
                    await step(number, choice, switch)
                    trace.append(f"{number} did {choice}")
            except (Cancelled, Closed) as error:
                trace.append(f"{number} ends by {type(error).__name__}")
                raise
            trace.append(f"{number} ends")

        async with Switch() as switch:
            for number in range(FIBERS):
                (switch.fork_promise if number % 5 == 0 else switch.fork)(work, number, switch)
            for _ in range(60):
                await fiber.yield_now()
            if with_time:
                await sleep(20)
            trace.append("cancel")
            switch.cancel()

    return main


def test_a_program_of_200_fibers_runs_the_same_50_times() -> None:
    traces = []
    for number in range(RUNS):
        trace: list[str] = []
        loop_factory = asyncio.new_event_loop if number % 2 else event_loop_factory()
        run(program(1, trace, with_time=False), loop_factory=loop_factory)
        traces.append(trace)
    assert len(traces[0]) > 2 * FIBERS
    assert all(trace == traces[0] for trace in traces)


def test_a_program_with_deadlines_runs_the_same_in_virtual_time() -> None:
    traces = []
    for _ in range(RUNS):
        trace: list[str] = []
        testing.run(program(2, trace, with_time=True))
        traces.append(trace)
    assert len(traces[0]) > 2 * FIBERS
    assert all(trace == traces[0] for trace in traces)


def test_forked_fibers_run_in_the_order_of_their_forks_after_those_that_can_run(run: Run) -> None:
    trace: list[str] = []

    async def forking(name: str, switch: Switch) -> None:
        trace.append(name)
        for number in range(2):
            switch.fork(trace.append, f"{name}{number}")
        await fiber.yield_now()
        trace.append(f"{name} again")

    async def main() -> None:
        async with Switch() as switch:
            switch.fork(forking, "a", switch)
            switch.fork(forking, "b", switch)
            switch.fork_daemon(forking, "c", switch)
            switch.fork_promise(forking, "d", switch)
            trace.append("body")
            await fiber.yield_now()
            trace.append("body again")

    run(main)
    forked = [f"{name}{number}" for name in "abcd" for number in range(2)]
    first = ["body", "a", "b", "c", "d", "body again"]
    # Each fiber goes to the end of the queue behind the two that it has forked.
    behind = [entry for name in "abcd" for entry in (f"{name}0", f"{name}1", f"{name} again")]
    assert trace == first + behind
    assert sorted(forked) == sorted(entry for entry in behind if "again" not in entry)


def test_a_resumed_fiber_runs_after_those_that_can_run(run: Run) -> None:
    trace: list[str] = []

    async def main() -> None:
        promise, resolver = Promise[None].create()

        async def wait() -> None:
            await promise
            trace.append("resumed")

        async with Switch() as switch:
            switch.fork(wait)
            await fiber.yield_now()
            switch.fork(trace.append, "runnable before")
            resolver.resolve(None)
            switch.fork(trace.append, "runnable after")
            trace.append("goes on")

    run(main)
    assert trace == ["goes on", "runnable before", "resumed", "runnable after"]


def test_awaiting_a_function_does_not_switch(run: Run) -> None:
    trace: list[str] = []

    async def main() -> None:
        async def nothing() -> None:
            trace.append("called")

        async with Switch() as switch:
            switch.fork(trace.append, "other")
            await nothing()
            async with Switch():
                pass
            fiber.check()
            await fiber.all([])
            with protect():
                pass
            trace.append("done")

    run(main)
    assert trace == ["called", "done", "other"]
