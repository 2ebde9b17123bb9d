"""Who is measured against whom, on which loop, and what is to be reached.

A contest's parties run in turn, several rounds, each in an event loop of its own; the best round of each counts, for
everything else that goes on in a machine only ever adds. Parties that use asyncio's loops are compared on the same
kind of loop; trio has its own.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio
import uvloop

from benchmarks.scheduler import programs
from domains.scheduler.run import run

OURS = "domains"
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio loop": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class Contest(NamedTuple):
    """`operations` are done by a program that is called with 1; `count` is what it is called with."""

    name: str
    operations: int
    count: int
    programs: dict[str, Callable[[int], Awaitable[None]]]
    targets: dict[str, float]
    """For a peer, how many times its figure ours may be at most."""


class Result(NamedTuple):
    """The figures of one contest on one loop, in nanoseconds for an operation."""

    contest: Contest
    loop: str
    figures: dict[str, float]

    def ratio(self, peer: str) -> float:
        """How many times what the peer takes we take."""
        return self.figures[OURS] / self.figures[peer]

    @property
    def is_reached(self) -> bool:
        return all(self.ratio(peer) <= target for peer, target in self.contest.targets.items())


def _items(program: Callable[[int, int], Awaitable[None]], capacity: int) -> Callable[[int], Awaitable[None]]:
    return functools.partial(program, capacity=capacity)


def _exchange(capacity: int) -> Contest:
    return Contest(
        f"Stream({capacity}): add and take, two fibers",
        1,
        5_000,
        {
            OURS: _items(programs.domains_items, capacity),
            "asyncio": _items(programs.asyncio_items, capacity),
            "anyio": _items(programs.anyio_items, capacity),
            "trio": _items(programs.trio_items, capacity),
        },
        {"asyncio": 1.5},
    )


CONTESTS = [
    Contest(
        f"yield_now, {programs.SWITCHING} fibers",
        programs.SWITCHING,
        2_000,
        {
            OURS: programs.domains_turns,
            "asyncio": programs.asyncio_turns,
            "anyio": programs.anyio_turns,
            "trio": programs.trio_turns,
        },
        {"asyncio": 1.3, "trio": 1.0},
    ),
    Contest(
        f"spawn and join {programs.JOINED} fibers",
        programs.JOINED,
        50,
        {
            OURS: programs.domains_joins,
            "asyncio": programs.asyncio_joins,
            "anyio": programs.anyio_joins,
            "trio": programs.trio_joins,
        },
        {"asyncio": 1.5, "anyio": 0.5},
    ),
    _exchange(1),
    _exchange(100),
    Contest(
        "async with Mutex().rw(), uncontended",
        1,
        50_000,
        {
            OURS: programs.domains_mutex,
            "asyncio": programs.asyncio_mutex,
            "anyio": programs.anyio_mutex,
            "trio": programs.trio_mutex,
        },
        {"asyncio": 1.5},
    ),
    Contest(
        "Mutex: lock and unlock, uncontended",
        1,
        50_000,
        {
            OURS: programs.domains_lock_unlock,
            "asyncio": programs.asyncio_lock_unlock,
            "anyio": programs.anyio_lock_unlock,
            "trio": programs.trio_lock_unlock,
        },
        {"asyncio": 1.5},
    ),
    Contest(
        "async with Semaphore, uncontended",
        1,
        50_000,
        {
            OURS: programs.domains_semaphore,
            "asyncio": programs.asyncio_semaphore,
            "anyio": programs.anyio_semaphore,
            "trio": programs.trio_semaphore,
        },
        {"asyncio": 1.5},
    ),
]


def measure(contest: Contest, loop: str, scale: float, rounds: int) -> Result:
    """Let each party have its turn, so many rounds."""
    count = max(1, int(contest.count * scale))
    best = dict.fromkeys(contest.programs, float("inf"))
    for _ in range(rounds):
        for party, program in contest.programs.items():
            gc.collect()
            seconds = _run(party, LOOPS[loop], functools.partial(_timed, program, count))
            best[party] = min(best[party], seconds)
    operations = contest.operations * count
    return Result(contest, loop, {party: seconds / operations * 1e9 for party, seconds in best.items()})


def _run(party: str, new_loop: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Awaitable[float]]) -> float:
    if party == OURS:
        return run(main, loop_factory=new_loop)
    if party == "trio":
        return trio.run(main)

    async def await_it() -> float:
        return await main()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(await_it())


async def _timed(program: Callable[[int], Awaitable[None]], count: int) -> float:
    started = time.thread_time()  # what other processes take of the machine does not count
    await program(count)
    return time.thread_time() - started
