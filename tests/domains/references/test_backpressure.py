"""A slow consumer domain makes a fast producer domain wait; what lies between them is bounded by the stream."""

from __future__ import annotations

import os
from typing import Any

import psutil
import pytest

from domains import Promise, Resolver, Stream, Switch, fiber

from .remote import in_pool

CAPACITY = 100
MEGABYTE = 1 << 20


def peak_bytes() -> int:
    """What this process has had resident at most, or has where that is not told."""
    try:
        with open("/proc/self/status") as status:
            (line,) = [line for line in status if line.startswith("VmHWM")]
    except FileNotFoundError:
        return int(psutil.Process().memory_info().rss)
    return int(line.split()[1]) * 1024


async def produce(stream: Stream[Any], count: int, warm: int) -> tuple[int, int]:
    """As fast as it can; tells its peak of memory after the first items, and at the end."""
    early = 0
    for number in range(count):
        await stream.add((number, "x" * 100))
        if number == warm:
            early = peak_bytes()
    stream.close()
    return early, peak_bytes()


async def consume(stream: Stream[Any], warm: int) -> tuple[int, int, int]:
    """Everything in order, with a turn for others after each; tells how many, and its peaks."""
    expected, early = 0, 0
    async for number, _ in stream:
        assert number == expected, (number, expected)
        expected += 1
        if number == warm:
            early = peak_bytes()
        await fiber.yield_now()
    return expected, early, peak_bytes()


def stream_through(count: int, link: str, home: str) -> None:
    async def main(pool: Any) -> None:
        warm = count // 10
        async with pool._manager.spawn() as one, pool._manager.spawn() as two, Switch() as switch:
            stream: Stream[Any] = await make(home, one, two)
            consuming = switch.fork_promise(two.call, consume, stream, warm)
            producing = switch.fork_promise(one.call, produce, stream, count, warm)
            taken, *consumer = await consuming
            producer = await producing
            assert taken == count
            for early, late in (consumer, producer):
                assert late - early < 8 * MEGABYTE, (early, late)
            del stream

    in_pool(main, link)


async def make(home: str, one: Any, two: Any) -> Any:
    if home == "main":
        return Stream(CAPACITY)
    return await (one if home == "producer" else two).call(make_stream)


async def make_stream() -> Stream[Any]:
    return Stream(CAPACITY)


HOMES = ["main", "producer", "consumer"]


@pytest.mark.parametrize("home", HOMES)
def test_items_beyond_the_capacity_take_no_memory(link: str, home: str) -> None:  # S39
    stream_through(20_000, link, home)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("home", HOMES)
def test_a_million_items_beyond_the_capacity_take_no_memory(home: str) -> None:  # S39
    stream_through(1_000_000, "socketpair", home)


async def add_as_told(stream: Stream[int], count: int, full: Resolver[None]) -> int:
    """Adds until it has to wait, and tells."""
    added = 0

    async def add() -> None:
        nonlocal added
        for number in range(count):
            await stream.add(number)
            added += 1

    async with Switch() as switch:
        adding = switch.fork_promise(add)
        while not adding.is_resolved and not stream._calls._pending:  # type: ignore[attr-defined]
            await fiber.yield_now()
        while added < stream.capacity:
            await fiber.yield_now()
        full.resolve(None)
        await adding
    return added


@pytest.mark.parametrize("capacity", [1, 2, 7, 100, 5000])
def test_a_producer_waits_as_soon_as_the_stream_is_full(link: str, capacity: int) -> None:  # S39
    async def main(pool: Any) -> None:
        stream: Stream[int] = Stream(capacity)
        filled, full = Promise[None].create()
        async with Switch() as switch:
            there = pool.submit_fork(switch, add_as_told, stream, 2 * capacity, full, weight=0.1)
            await filled
            while not stream._adders:
                await fiber.yield_now()
            assert len(stream) == capacity
            assert not there.is_resolved
            assert [await stream.take() for _ in range(2 * capacity)] == list(range(2 * capacity))
            assert await there == 2 * capacity
        assert stream.is_empty

    in_pool(main, link)


async def add_and_return(stream: Stream[Any], count: int) -> str:
    for number in range(count):
        await stream.add((number, os.urandom(10)))
    return "result"


@pytest.mark.parametrize("count", [1, 2, 50, 100])
def test_no_result_overtakes_the_items_of_its_job(link: str, count: int) -> None:
    async def main(pool: Any) -> None:
        for _ in range(10):
            stream: Stream[Any] = Stream(100)
            assert await pool.submit(add_and_return, stream, count, weight=0.1) == "result"
            seen = [stream.take_nonblocking() for _ in range(count)]
            assert [item and item[0] for item in seen] == list(range(count))

    in_pool(main, link)
