"""Places that a stream's home has promised to other domains: used, recalled, returned, and never lost."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from typing import Any

import pytest

from domains import Closed, DomainDied, Promise, Resolver, Stream, Switch, fiber
from domains.protocol import RecallPlaces

from . import moments
from .remote import Opens, in_pool

_kept: list[Any] = []


async def get_places(stream: Stream[Any]) -> int:
    """Keeps the reference, with the places that the first add was promised."""
    _kept.append(stream)
    await stream.add("first")
    return int(stream._places)  # type: ignore[attr-defined]


async def keep(stream: Any) -> None:
    _kept.append(stream)


async def forget() -> None:
    _kept.clear()
    gc.collect()
    await fiber.yield_now()


async def close_and_add(stream: Stream[Any]) -> str:
    await stream.add("first")
    stream.close()
    try:
        await stream.add("late")
    except Closed:
        return "closed"
    return "added"


def test_an_add_behind_a_close_of_the_same_domain_is_refused(link: str) -> None:  # S42
    async def main(pool: Any) -> None:
        stream: Stream[Any] = Stream(10)
        assert await pool.submit(close_and_add, stream, weight=0.1) == "closed"
        assert [item async for item in stream] == ["first"]

    in_pool(main, link)


async def add_what_cannot_be_opened(stream: Stream[Any]) -> None:
    for item in (1, Opens(), 2):
        await stream.add(item)


def test_an_item_for_a_promised_place_that_cannot_be_opened_is_lost_alone(
    link: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(pool: Any) -> None:
        stream: Stream[Any] = Stream(10)
        async with pool._manager.spawn() as domain:
            await domain.call(add_what_cannot_be_opened, stream)
            assert [await stream.take(), await stream.take()] == [1, 2]
            assert domain.alive
            for number in range(10):  # its place is free again, and so are those that were promised
                await stream.add(number)

    in_pool(main, link)
    assert "is lost" in caplog.text


async def take_kept() -> None:
    stream = _kept.pop()
    references = moments.registry()
    home, number, label = stream.home, stream.number, (stream.capacity, stream.label)
    found = references._imports[home, number]
    del stream
    gc.collect()
    assert found() is None, gc.get_referrers(found())
    _kept.append(references.open("stream", home, number, "main", home, 0, label))


def test_places_of_a_reference_that_is_replaced_at_once_come_back(link: str) -> None:  # S39
    async def main(pool: Any) -> None:
        stream: Stream[Any] = Stream(10)
        async with pool._manager.spawn() as domain:
            assert await domain.call(get_places, stream)
            export = next(iter(pool._manager.references.exports.values()))
            export.holds += 1  # as while the pickle that replaces it is on its way
            await domain.call(take_kept)
            assert await stream.take() == "first"
            for number in range(10):
                await stream.add(number)
            await domain.call(forget)
            export.holds -= 1
            pool._manager.references._drop_if_unused(export)

    in_pool(main, link)


async def add_when_told(stream: Stream[Any], waits: Resolver[None]) -> None:
    waits.resolve(None)
    await stream.add("late")


def test_a_domain_that_dies_as_its_add_is_done_keeps_no_places(link: str) -> None:  # S39
    async def main(pool: Any) -> None:
        stream: Stream[Any] = Stream(2)
        for _ in range(2):
            await stream.add("early")
        await pool.submit(keep, stream, weight=0.1)  # so that others know it still
        waits, say = Promise[None].create()
        references = pool._manager.references
        async with pool._manager.spawn() as domain, Switch() as switch:
            there = switch.fork_promise(domain.call, add_when_told, stream, say)
            await waits
            while not stream._adders:
                await fiber.yield_now()
            (sender,) = {sender for sender, _ in references.calls.served}
            # The add is done, and in the same turn, before it is answered, the death is known.
            assert stream.take_nonblocking() == "early"
            assert stream.take_nonblocking() == "early"
            references._forget_holder(sender, DomainDied("it"))
            await fiber.yield_now()
            await fiber.yield_now()
            os.kill(domain.pid, signal.SIGKILL)
            with contextlib.suppress(DomainDied):  # unless its answer was faster
                await there
        assert await stream.take() == "late"
        for number in range(2):
            assert stream.add_nonblocking(number)
        await pool.submit(forget, weight=0.1)

    in_pool(main, link)


@pytest.mark.parametrize("end", ["forgets", "dies"])
def test_places_come_back_from_a_domain_that_does_not_use_them(link: str, end: str) -> None:  # S39
    async def main(pool: Any) -> None:
        stream: Stream[Any] = Stream(10)
        async with pool._manager.spawn() as domain, Switch() as switch:
            assert await domain.call(get_places, stream)
            assert await stream.take() == "first"
            filling = switch.fork_promise(fill, stream)
            if end == "forgets":
                await domain.call(forget)
            else:
                os.kill(domain.pid, signal.SIGKILL)
                with pytest.raises(DomainDied):
                    await domain.call(forget)
            await filling

    in_pool(main, link)


async def fill(stream: Stream[Any]) -> None:
    for number in range(stream.capacity):
        await stream.add(number)


def test_an_add_at_home_that_may_not_wait_asks_for_promised_places_once_and_then_has_them(link: str) -> None:  # S39
    async def main(pool: Any) -> None:
        stream: Stream[Any] = Stream(10)
        references = pool._manager.references
        recalls: list[Any] = []
        send = references.send

        def count(message: Any, *rest: Any) -> None:
            if isinstance(message, RecallPlaces):
                recalls.append(message)
            send(message, *rest)

        references.send = count
        async with pool._manager.spawn() as domain:
            places = await domain.call(get_places, stream)
            for number in range(9 - places):
                assert stream.add_nonblocking(number)
            for _ in range(100):
                assert not stream.add_nonblocking("too early")  # there is no room but what is promised
            await domain.call(keep, None)  # comes behind the answer to the recall
            for number in range(places):
                assert stream.add_nonblocking(number)
            assert not stream.add_nonblocking("too many")
            assert len(recalls) == 1
            assert [stream.take_nonblocking() for _ in range(10)].count("first") == 1
            assert await domain.call(add_again) > 0  # and may be promised some again
            await domain.call(forget)
        del references.send

    in_pool(main, link)


async def add_again() -> int:
    await _kept[0].add("again")
    return int(_kept[0]._places)


async def make_full() -> Stream[Any]:
    stream: Stream[Any] = Stream(1)
    await stream.add("first")
    _kept.append(stream)
    return stream


async def wait_for_adder() -> None:
    while not _kept[0]._adders:
        await fiber.yield_now()


def take_in_a_plain_job() -> Any:
    return _kept[0].take_nonblocking()


def test_who_waits_to_add_goes_on_when_a_plain_job_at_home_has_taken(link: str) -> None:  # S39
    async def main(pool: Any) -> None:
        async with pool._manager.spawn() as domain, Switch() as switch:
            stream = await domain.call(make_full)
            adding = switch.fork_promise(stream.add, "second")
            await domain.call(wait_for_adder)
            assert await domain.call(take_in_a_plain_job) == "first"
            await adding
            assert await domain.call(take_in_a_plain_job) == "second"
            await domain.call(forget)

    in_pool(main, link)
