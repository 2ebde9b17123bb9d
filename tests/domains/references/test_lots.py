"""Items that are lent to the domain that takes them: in their order, once, and back when somebody else wants one."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from domains import Closed, DomainDied, Stream, Switch, fiber, move_on_after, timeout
from domains.references.lots import Taker

from . import moments
from .remote import Opens, in_pool

_kept: list[Any] = []


async def take_some(stream: Stream[Any], count: int) -> list[Any]:
    """Keeps the reference, and what it was lent."""
    _kept[:] = [stream]
    return [await stream.take() for _ in range(count)]


async def take_more(count: int) -> list[Any]:
    return [await _kept[0].take() for _ in range(count)]


async def forget() -> None:
    _kept.clear()
    gc.collect()
    await fiber.yield_now()


def filled(count: int, capacity: int = 1000) -> Stream[int]:
    stream: Stream[int] = Stream(capacity)
    for number in range(count):
        assert stream.add_nonblocking(number)
    return stream


def lent(stream: Any) -> int:
    return 0 if stream._lent_to is None else int(stream._lent_to.left)


def test_who_takes_alone_is_lent_more_and_more(link: str) -> None:  # S39
    async def main(pool: Any) -> None:
        stream = filled(1000)
        async with pool._manager.spawn() as domain:
            assert await domain.call(take_some, stream, 300) == list(range(300))
            assert len(stream) == 700
            assert lent(stream) > 50
            assert not stream.is_empty
            assert await domain.call(take_more, 699) == list(range(300, 999))
            assert len(stream) == 1
            await domain.call(forget)
        assert await stream.take() == 999

    in_pool(main, link)


def test_who_else_takes_has_the_next_item_at_once_though_it_was_lent(link: str) -> None:  # S39
    async def main(pool: Any) -> None:
        stream = filled(100)
        async with pool._manager.spawn() as domain:
            await domain.call(take_some, stream, 20)
            assert lent(stream)
            os.kill(domain.pid, signal.SIGSTOP)  # nobody could ask it
            try:
                assert [await stream.take() for _ in range(10)] == list(range(20, 30))
                assert not lent(stream)
            finally:
                os.kill(domain.pid, signal.SIGCONT)
            assert await domain.call(take_more, 10) == list(range(30, 40))
            assert stream.take_nonblocking() == 40
            await domain.call(forget)
            assert len(stream) == 59

    in_pool(main, link)


def test_two_domains_that_take_in_turns_have_the_items_in_their_order(link: str) -> None:  # S39
    async def main(pool: Any) -> None:
        stream = filled(200)
        async with pool._manager.spawn() as one, pool._manager.spawn() as two:
            await one.call(take_some, stream, 0)
            await two.call(take_some, stream, 0)
            seen: list[int] = []
            while len(seen) < 190:
                seen += await one.call(take_more, 7)
                seen += await two.call(take_more, 3)
            assert seen == list(range(190))
            await one.call(forget)
            await two.call(forget)

    in_pool(main, link)


async def take_until_closed(stream: Stream[int]) -> list[int]:
    seen = []
    async for number in stream:
        seen.append(number)
        if number % 7 == 0:
            await fiber.yield_now()
    return seen


def test_domains_that_take_at_the_same_time_share_the_items(link: str) -> None:  # S39 S42
    async def main(pool: Any) -> None:
        stream: Stream[int] = Stream(50)
        async with Switch() as switch:
            jobs = [pool.submit_fork(switch, take_until_closed, stream, weight=0.4) for _ in range(4)]
            for number in range(3000):
                await stream.add(number)
            stream.close()
            records = [await job for job in jobs]
        assert sorted(number for record in records for number in record) == list(range(3000))
        for record in records:
            assert record == sorted(record)

    in_pool(main, link, 2)


def test_items_of_a_domain_that_dies_are_back_in_their_order_but_those_it_has_taken(link: str) -> None:  # S41
    async def main(pool: Any) -> None:
        stream = filled(100)
        async with pool._manager.spawn() as domain:
            await domain.call(take_some, stream, 20)
            assert lent(stream)
            os.kill(domain.pid, signal.SIGKILL)
            with pytest.raises(DomainDied):
                await domain.call(forget)
        assert [stream.take_nonblocking() for _ in range(80)] == list(range(20, 100))

    in_pool(main, link)


async def take_and_record(stream: Stream[int], path: str) -> None:
    """Each item is in the file once it was taken."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async for number in stream:
        os.write(file, b"%d\n" % number)


@pytest.mark.parametrize("seed", range(3))
def test_whenever_a_taker_is_killed_no_item_is_doubled_and_one_at_most_is_lost_with_it(
    link: str, seed: int, tmp_path: Path
) -> None:  # S41
    record = tmp_path / "taken"

    async def main(pool: Any) -> None:
        stream = filled(2000, 2000)
        for round_number in range(3):
            async with pool._manager.spawn() as domain, Switch() as switch:
                taking = switch.fork_promise(domain.call, take_and_record, stream, str(record))
                before = len(stream)
                while before - len(stream) < 10 + 67 * ((seed + round_number) % 3):
                    await fiber.yield_now()
                os.kill(domain.pid, signal.SIGKILL)
                with pytest.raises(DomainDied):
                    await taking
        left = [stream.take_nonblocking() for _ in range(len(stream))]
        taken = [int(line) for line in record.read_text().split()]
        assert taken == sorted(set(taken))
        assert not set(taken) & set(left)
        assert left == list(range(2000 - len(left), 2000))
        assert 2000 - len(left) - len(taken) <= 3

    in_pool(main, link)


def test_a_reference_that_is_dropped_gives_back_what_it_was_lent(link: str) -> None:  # S41
    async def main(pool: Any) -> None:
        stream: Any = filled(100)
        async with pool._manager.spawn() as domain, pool._manager.spawn() as other:
            await other.call(take_some, stream, 0)  # so that it stays known
            await domain.call(take_some, stream, 20)
            assert lent(stream)
            await domain.call(forget)
            while stream._takers_elsewhere:
                await fiber.yield_now()
            assert not lent(stream)
            assert len(stream._items) == 80
            await other.call(forget)

    in_pool(main, link)


async def claim_and_take(in_time: bool, stream: Stream[int], turns: Stream[str]) -> list[int]:
    """Claims the next item just before or just after somebody else takes, and looks only afterwards."""
    seen = [await stream.take() for _ in range(5)]
    while not stream._lent:  # type: ignore[attr-defined]
        seen.append(await stream.take())
    lent = stream._lent  # type: ignore[attr-defined]
    if in_time:
        assert lent._tally.claim(lent._lot, lent._taken + 1)
    await turns.add("yours")
    assert await turns.take() == "mine"
    seen.append(await stream.take())
    return seen


@pytest.mark.parametrize("in_time", [True, False])
def test_of_a_claim_that_found_the_lot_closed_the_home_knows_whether_it_came_in_time(
    in_time: bool, link: str
) -> None:  # S41
    async def main(pool: Any) -> None:
        stream = filled(100)
        turns: Stream[str] = Stream(0)
        async with Switch() as switch:
            there = pool.submit_fork(switch, claim_and_take, in_time, stream, turns, weight=0.5)
            assert await turns.take() == "yours"
            mine = await stream.take()
            await turns.add("mine")
            seen = await there
        assert sorted([*seen, mine]) == list(range(len(seen) + 1))
        assert (seen[-1] < mine) == in_time
        assert len(stream) == 100 - len(seen) - 1

    in_pool(main, link)


def test_lent_items_count_until_they_are_taken_and_make_room_for_who_waits_then(link: str) -> None:  # S39
    async def main(pool: Any) -> None:
        stream = filled(20, 20)
        async with pool._manager.spawn() as domain, Switch() as switch:
            await domain.call(take_some, stream, 4)
            for number in range(20, 24):
                assert stream.add_nonblocking(number)
            assert lent(stream)
            assert not stream.add_nonblocking(24)
            adding = switch.fork_promise(stream.add, 24)
            await fiber.yield_now()
            assert not adding.is_resolved
            with timeout(20):
                assert await domain.call(take_more, 1) == [4]
                await adding
            assert len(stream) == 20
            assert not stream.add_nonblocking(25)
            await domain.call(forget)
        assert [stream.take_nonblocking() for _ in range(20)] == list(range(5, 25))

    in_pool(main, link)


def test_a_closed_stream_is_drained_by_whom_its_items_were_lent_to(link: str) -> None:  # S42
    async def main(pool: Any) -> None:
        stream = filled(30)
        async with pool._manager.spawn() as domain:
            await domain.call(take_some, stream, 10)
            stream.close()
            assert await domain.call(take_more, 20) == list(range(10, 30))
            with pytest.raises(Closed):
                await domain.call(take_more, 1)
            await domain.call(forget)

    in_pool(main, link)


async def add_all(stream: Stream[int], count: int) -> None:
    for number in range(count):
        await stream.add(number)


async def count_calls(count: int) -> int:
    """Takes so many, and tells how often it had to ask."""
    calls = moments.registry().calls
    first = next(calls._numbers)
    assert await take_more(count) == list(range(count))
    return next(calls._numbers) - first - 1


def test_who_waits_is_lent_what_comes_together_with_its_item(link: str) -> None:  # S39
    async def main(pool: Any) -> None:
        stream: Any = Stream(1000)
        async with pool._manager.spawn() as one, pool._manager.spawn() as two, Switch() as switch:
            await two.call(take_some, stream, 0)
            asking = switch.fork_promise(two.call, count_calls, 500)
            while not stream._takers:
                await fiber.yield_now()
            await one.call(add_all, stream, 500)
            assert await asking < 50
            await two.call(forget)

    in_pool(main, link)


async def take_nonblocking() -> tuple[list[Any], int]:
    stream = _kept[0]
    return [stream.take_nonblocking() for _ in range(15)], len(stream)


def take_in_a_plain_job() -> list[Any]:
    return [_kept[0].take_nonblocking() for _ in range(15)]


def test_what_is_lent_can_be_taken_without_waiting(link: str) -> None:  # S41
    async def main(pool: Any) -> None:
        stream = filled(45)
        async with pool._manager.spawn() as domain:
            await domain.call(take_some, stream, 10)
            assert await domain.call(take_nonblocking) == (list(range(10, 25)), 20)
            await domain.call(take_more, 3)
            assert await domain.call(take_in_a_plain_job) == list(range(28, 43))
            assert len(stream) == 2
            await domain.call(forget)

    in_pool(main, link)


async def cancelled_takes(stream: Stream[int]) -> tuple[list[int], int]:
    seen = [await stream.take() for _ in range(10)]
    cancelled = 0
    for _ in range(20):
        with move_on_after(0.0) as scope:
            seen.append(await stream.take())
        cancelled += scope.cancelled
    seen += [await stream.take() for _ in range(10)]
    return seen, cancelled


def test_a_take_in_a_cancelled_context_takes_nothing_of_what_is_lent(link: str) -> None:  # S41
    async def main(pool: Any) -> None:
        stream = filled(100)
        seen, cancelled = await pool.submit(cancelled_takes, stream, weight=0.1)
        assert seen == list(range(40 - cancelled))
        assert cancelled > 0
        assert len(stream) == 100 - len(seen)

    in_pool(main, link)


def test_items_of_any_kind_arrive_in_their_order(link: str) -> None:  # S39
    import numpy  # not by each domain that imports this file

    async def main(pool: Any) -> None:
        inner: Stream[int] = Stream(1)
        items: list[Any] = [1, "text", b"bytes", None, [1, 2], inner, 1 << 80, 2.5, bytes(1 << 17), {"a": 1}] * 10
        arrays = [numpy.full(50_000, number) for number in range(3)]
        stream: Stream[Any] = Stream(200)
        for item in [*items, *arrays, "end"]:
            await stream.add(item)
        async with pool._manager.spawn() as domain:
            seen = await domain.call(take_some, stream, len(items))
            assert seen == items
            for array in arrays:
                assert numpy.array_equal(await stream.take(), array)
            assert await domain.call(take_more, 1) == ["end"]
            await domain.call(forget)

    in_pool(main, link)


async def take_what_fails() -> list[Any]:
    seen: list[Any] = []
    for _ in range(6):
        try:
            seen.append(await _kept[0].take())
        except Exception as error:
            seen.append(type(error).__name__)
    return seen


def test_an_item_that_cannot_travel_fails_the_take_that_would_have_had_it(link: str) -> None:
    async def main(pool: Any) -> None:
        stream: Stream[Any] = Stream(100)
        for item in [*range(20), Opens(), 20, 21, (each for each in ()), 22]:
            await stream.add(item)
        async with pool._manager.spawn() as domain:
            await domain.call(take_some, stream, 19)
            assert await domain.call(take_what_fails) == [19, "NotPicklable", 20, 21, "NotPicklable", 22]
            await domain.call(forget)

    in_pool(main, link)


def test_a_claim_of_the_lot_before_the_latest_is_settled() -> None:
    """A large item is on its way before the lot that is lent with it, and the next take may ask for another lot."""
    taker = Taker(1)
    first = taker.lend(["a", "b"])
    taker.tally.claim(first, 1)
    assert list(taker.take_back()) == ["b"]
    second = taker.lend(["b"])
    assert list(taker.take_back()) == ["b"]
    assert [taker.has_taken(first, 1), taker.has_taken(first, 2), taker.has_taken(second, 1)] == [True, False, False]
    taker.tally.release()
