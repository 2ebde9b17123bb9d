"""Places of a stream that are promised to another domain: used, recalled, or lost with it."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from domains import Closed, DomainDied, Mutex, Promise, Resolver, Stream, Switch, fiber, shared_array, timeout

from . import moments
from .remote import in_pool


async def add_some(stream: Stream[Any], items: list[Any]) -> int:
    """Adds, and says how many places it was promised beyond that."""
    for item in items:
        await stream.add(item)
    kept.append(stream)
    return stream._places  # type: ignore[attr-defined]


kept: list[Any] = []


async def add_more(items: list[Any]) -> None:
    for item in items:
        await kept[0].add(item)


async def forget() -> None:
    kept.clear()


def test_items_of_all_kinds_keep_their_order_and_their_type(link: str) -> None:  # S39
    items = [0, 1, -(1 << 70), 1 << 61, 1.5, float("inf"), True, None, "text", "tëxt", b"bytes", (1, 2), {"a": [1]}]

    async def main(pool: Any) -> list[Any]:
        stream: Stream[Any] = Stream(1000)
        async with Switch() as switch:
            adding = pool.submit_fork(switch, add_some, stream, items * 3, weight=0.1)
            seen = [await stream.take() for _ in range(len(items) * 3)]
            assert await adding > 0
        await pool.submit(forget, weight=0.1)
        return seen

    seen = in_pool(main, link)
    assert seen == items * 3
    assert [type(item) for item in seen] == [type(item) for item in items * 3]


def test_who_waits_for_promised_places_gets_them(link: str) -> None:  # S39
    async def main(pool: Any) -> list[int]:
        stream: Stream[int] = Stream(8)
        assert await pool.submit(add_some, stream, [0], weight=0.1) > 0
        with timeout(20):
            for number in range(1, 8):
                await stream.add(number)  # as many as the stream has room for
        assert not stream.add_nonblocking(8)
        await pool.submit(forget, weight=0.1)
        return [await stream.take() for _ in range(8)]

    assert in_pool(main, link) == list(range(8))


def test_a_closed_stream_ends_once_its_promises_have_returned(link: str) -> None:  # S42
    async def main(pool: Any) -> list[int]:
        stream: Stream[int] = Stream(8)
        assert await pool.submit(add_some, stream, [0, 1], weight=0.1) > 0
        stream.close()
        with timeout(20):
            seen = [item async for item in stream]
        with pytest.raises(Closed):
            await pool.submit(add_more, [2], weight=0.1)
        await pool.submit(forget, weight=0.1)
        return seen

    assert in_pool(main, link) == [0, 1]


async def add_and_stay(stream: Stream[int], added: Resolver[int]) -> None:
    await stream.add(0)
    added.resolve(stream._places)  # type: ignore[attr-defined]
    await Promise.create("never")[0]


def test_places_of_a_domain_that_dies_are_free_again(link: str) -> None:  # S41
    async def main(pool: Any) -> int:
        stream: Stream[int] = Stream(8)
        places: Promise[int]
        places, added = Promise.create()
        async with pool._manager.spawn() as domain, Switch() as switch:
            dying = switch.fork_promise(domain.call, add_and_stay, stream, added)
            assert await places > 0
            os.kill(domain.pid, signal.SIGKILL)
            with pytest.raises(DomainDied):
                await dying
            with timeout(20):
                for number in range(1, 8):
                    await stream.add(number)
        return len(stream)

    assert in_pool(main, link) == 8


async def add_large_and_small(stream: Stream[Any]) -> None:
    import numpy  # not by each domain that imports this file

    await stream.add("first")
    for number in range(3):
        await stream.add(number)
        await stream.add(numpy.full(100_000, number))
        await fiber.yield_now()  # so that it has left
        await stream.add(-number)


def test_small_items_follow_large_ones_in_their_order(link: str) -> None:  # S39
    async def main(pool: Any) -> list[Any]:
        stream: Stream[Any] = Stream(100)
        await pool.submit(add_large_and_small, stream, weight=0.1)
        return [item if isinstance(item, int | str) else item.tolist()[-1] for item in await take_all(stream)]

    assert in_pool(main, link) == ["first", 0, 0, 0, 1, 1, -1, 2, 2, -2]


async def take_all(stream: Stream[Any]) -> list[Any]:
    stream.close()
    return [item async for item in stream]


async def change_after_adding(stream: Stream[list[int]]) -> None:
    item = [0]
    for number in range(5):
        item[0] = number
        await stream.add(item)


def test_an_item_is_what_it_was_when_it_was_added(link: str) -> None:
    async def main(pool: Any) -> list[list[int]]:
        stream: Stream[list[int]] = Stream(20)
        await pool.submit(change_after_adding, stream, weight=0.1)
        return [await stream.take() for _ in range(5)]

    assert in_pool(main, link) == [[number] for number in range(5)]


async def add_at_once(stream: Stream[int], count: int) -> int:
    """Fibers that add at the same time: each is promised places, and none of these may be forgotten."""
    await fiber.iter(stream.add, range(count))
    return stream._places  # type: ignore[attr-defined,no-any-return]


def test_fibers_that_add_at_the_same_time_keep_all_that_they_are_promised(link: str) -> None:  # S39
    async def main(pool: Any) -> None:
        stream: Stream[int] = Stream(100)
        await pool.submit(add_at_once, stream, 10, weight=0.1)
        with timeout(10):
            await fiber.iter(stream.add, range(90))  # all places that nobody has used can be had
        assert len(stream) == 100
        for _ in range(100):
            stream.take_nonblocking()

    in_pool(main, link)


async def count_under_a_lock(mutex: Mutex, counts: Any, stream: Stream[int], rounds: int) -> None:
    for _ in range(rounds):
        async with mutex.ro():
            counts[0] += 1
            await stream.add(int(counts[0]))


@pytest.mark.parametrize("capacity", [0, 8, 1000])
def test_adds_that_a_mutex_puts_in_order_leave_in_that_order(link: str, capacity: int) -> None:  # S39
    import numpy

    rounds = 100

    async def main(pool: Any) -> list[int]:
        mutex = Mutex()
        stream: Stream[int] = Stream(capacity)
        counts = shared_array(1, numpy.int64)
        async with Switch() as switch:
            for _ in range(3):
                pool.submit_fork(switch, count_under_a_lock, mutex, counts, stream, rounds, weight=1.0)
            return [await stream.take() for _ in range(3 * rounds)]

    assert in_pool(main, link, 3) == list(range(1, 3 * rounds + 1))


async def add_from_fibers(stream: Stream[int], count: int) -> None:
    async with Switch() as switch:
        for number in range(count):
            switch.fork(stream.add, number)


@pytest.mark.parametrize("count", [1, 2])
def test_a_stream_that_is_let_go_of_as_soon_as_its_adds_are_answered_is_a_plain_one(
    link: str, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    async def main(pool: Any) -> None:
        stream: Stream[int] = Stream(0)
        async with Switch() as switch:
            adding = pool.submit_fork(switch, add_from_fibers, stream, count, weight=0.1)
            while len(stream._adders) < count:
                await fiber.yield_now()
            assert [stream.take_nonblocking() for _ in range(count)] == list(range(count))
            references = moments.registry()
            (domain,) = references.exports[stream._export.number].holders  # type: ignore[attr-defined]
            while references.exports:
                references.pump(domain)  # all within this turn of the loop
            await adding

    in_pool(main, link)
    assert not caplog.records
