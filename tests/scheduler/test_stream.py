"""Streams: order, waiting, rendezvous, closing (S39 to S43)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from domains import Cancelled, CancelScope, Closed, Stream, Switch, fiber


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await fiber.yield_now()


async def test_an_add_waits_while_the_stream_is_full() -> None:  # S39
    stream: Stream[int] = Stream(2)
    trace: list[str] = []

    async def adder() -> None:
        for number in range(3):
            await stream.add(number)
            trace.append(f"added {number}")

    async with Switch() as switch:
        switch.fork(adder)
        await turns()
        assert trace == ["added 0", "added 1"]
        assert len(stream) == 2
        assert await stream.take() == 0
        await turns()
        assert trace[-1] == "added 2"
    assert [stream.take_nonblocking(), stream.take_nonblocking(), stream.take_nonblocking()] == [1, 2, None]


async def test_takers_are_served_in_the_order_of_their_takes() -> None:  # S39
    stream: Stream[int] = Stream(5)
    trace: list[tuple[str, int]] = []

    async def taker(name: str) -> None:
        trace.append((name, await stream.take()))

    async with Switch() as switch:
        for name in "abc":
            switch.fork(taker, name)
        await turns()
        for number in range(3):
            await stream.add(number)
    assert trace == [("a", 0), ("b", 1), ("c", 2)]


async def test_a_nonblocking_call_does_not_overtake_one_that_waits() -> None:  # S39
    stream: Stream[int] = Stream(1)
    async with Switch() as switch:
        await stream.add(0)
        switch.fork(stream.add, 1)
        await turns()
        assert not stream.add_nonblocking(2)
        assert stream.take_nonblocking() == 0
        assert not stream.add_nonblocking(3), "the waiting add has the place"
        assert stream.take_nonblocking() == 1
        assert stream.is_empty
        promise = switch.fork_promise(stream.take)
        await turns()
        assert stream.add_nonblocking(4)
        assert stream.take_nonblocking() is None
        assert await promise == 4


async def test_a_rendezvous_add_is_done_when_its_item_is_taken() -> None:  # S40
    stream: Stream[str] = Stream(0)
    trace: list[str] = []

    async def adder() -> None:
        await stream.add("item")
        trace.append("added")

    async with Switch() as switch:
        assert not stream.add_nonblocking("nobody waits")
        assert stream.take_nonblocking() is None
        switch.fork(adder)
        await turns()
        assert trace == []
        assert len(stream) == 0
        assert await stream.take() == "item"
        await turns()
        assert trace == ["added"]
        switch.fork(adder)
        await turns()
        assert stream.take_nonblocking() == "item"
        promise = switch.fork_promise(stream.take)
        await turns()
        assert stream.add_nonblocking("for the one who waits")
        assert await promise == "for the one who waits"


@pytest.mark.parametrize("capacity", [0, 1])
async def test_the_item_of_a_cancelled_add_is_never_seen(capacity: int) -> None:  # S40 S41
    stream: Stream[int] = Stream(capacity)
    for number in range(capacity):
        await stream.add(number)
    scope = CancelScope()

    async def adder() -> None:
        with scope:
            await stream.add(99)

    async with Switch() as switch:
        switch.fork(adder)
        await turns()
        scope.cancel()
        assert [stream.take_nonblocking() for _ in range(2)] == [0, None][1 - capacity :] + [None] * (1 - capacity)
    assert scope.cancelled


async def test_a_cancelled_take_has_taken_nothing() -> None:  # S41
    stream: Stream[int] = Stream(1)
    scope = CancelScope()

    async def taker() -> None:
        with scope:
            await stream.take()

    async with Switch() as switch:
        switch.fork(taker)
        await turns()
        scope.cancel()
        assert stream.add_nonblocking(1)
    assert scope.cancelled
    assert stream.take_nonblocking() == 1


async def test_a_take_that_was_served_before_the_cancellation_has_its_item() -> None:  # S9 S41
    stream: Stream[int] = Stream(1)
    scope = CancelScope()
    taken: list[int] = []

    async def taker() -> None:
        with scope:
            taken.append(await stream.take())

    async with Switch() as switch:
        switch.fork(taker)
        await turns()
        stream.add_nonblocking(1)
        scope.cancel()
    assert taken == [1]
    assert not scope.cancelled


async def test_closing_lets_takers_drain_what_is_there() -> None:  # S42
    stream: Stream[int] = Stream(2)
    await stream.add(1)
    await stream.add(2)
    async with Switch() as switch:
        waiting = switch.fork_promise(stream.add, 3)
        await turns()
        stream.close()
        stream.close()
        with pytest.raises(Closed):
            await waiting
    with pytest.raises(Closed):
        await stream.add(4)
    with pytest.raises(Closed):
        stream.add_nonblocking(4)
    assert [item async for item in stream] == [1, 2]
    with pytest.raises(Closed):
        await stream.take()
    with pytest.raises(Closed):
        stream.take_nonblocking()


async def test_closing_wakes_each_taker_with_an_exception_of_its_own() -> None:  # S42
    stream: Stream[int] = Stream(0)
    async with Switch() as switch:
        promises = [switch.fork_promise(stream.take) for _ in range(2)]
        await turns()
        stream.close()
        errors: list[Any] = []
        for promise in promises:
            with pytest.raises(Closed) as caught:
                await promise
            errors.append(caught.value)
    assert errors[0] is not errors[1]


async def test_iteration_ends_cleanly_when_the_stream_is_closed() -> None:  # S42
    stream: Stream[int] = Stream(0)
    seen: list[int] = []

    async def reader() -> None:
        async for item in stream:
            seen.append(item)

    async with Switch() as switch:
        switch.fork(reader)
        for number in range(3):
            await stream.add(number)
        stream.close()
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("capacity", [1.0, "1", None, True])
def test_a_capacity_that_is_no_int_is_a_type_error(capacity: Any) -> None:  # S43
    with pytest.raises(TypeError, match="capacity"):
        Stream(capacity)


def test_a_negative_capacity_is_a_value_error() -> None:  # S43
    with pytest.raises(ValueError, match="at least 0"):
        Stream(-1)


async def test_in_a_cancelled_context_neither_add_nor_take_does_anything() -> None:  # S8
    stream: Stream[int] = Stream(1)
    with CancelScope() as scope:
        scope.cancel()
        with pytest.raises(Cancelled):
            await stream.add(1)
        with pytest.raises(Cancelled):
            await stream.take()
    assert stream.is_empty


async def test_a_stream_works_from_a_plain_asyncio_task() -> None:
    stream: Stream[int] = Stream(0, label="plain")
    task = asyncio.create_task(stream.take())
    await turns()
    assert "plain" in repr(stream)
    await stream.add(7)
    assert await task == 7
