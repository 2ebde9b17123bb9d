"""Random schedules of operations from several domains, with cancels and time-outs: nothing is lost, nothing doubled.

Each domain and the home play a list of steps, made from a seed, at the same time. What ended, and how, is recorded
where it ended, so that the sum of all records must agree with what is left at home.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from domains import Condition, Mutex, Poisoned, Pool, Semaphore, Stream, Switch, fiber, move_on_after

from .remote import in_pool

SEEDS = range(4)
FIBERS = 4
STEPS = 40
PATIENCE_SECONDS = 0.02


async def disturbed(
    draw: random.Random, f: Callable[[], Awaitable[Any]], most_seconds: float | None = None
) -> tuple[bool, Any]:
    """Do it, perhaps with a time-out, or with a cancel after some turns; tells whether it was done.

    Undisturbed it may take `most_seconds`, if whoever it waits for may have ended.
    """
    done: list[Any] = []

    async def run() -> None:
        done.append(await f())

    way = draw.randrange(4)
    if way < 2:
        with move_on_after(most_seconds if way == 0 else draw.choice([0.0, 0.0001, 0.0005, 0.002])):
            await run()
    else:
        async with Switch() as switch:
            switch.fork(run)
            for _ in range(draw.randrange(12)):
                await fiber.yield_now()
            if way == 2:
                await asyncio.sleep(draw.choice([0.0, 0.0002, 0.001]))
            switch.cancel()
    return bool(done), done[0] if done else None


async def play(seed: str, steps: Callable[[random.Random, str], Awaitable[None]]) -> None:
    """Some fibers, each with a generator of its own."""
    async with Switch() as switch:
        for number in range(FIBERS):
            name = f"{seed}.{number}"
            switch.fork(steps, random.Random(name), name)


async def everywhere(pool: Any, seed: int, steps: Callable[..., Awaitable[Any]], *things: Any) -> list[Any]:
    """Play the same kind of steps in two domains, and at home."""
    async with pool._manager.spawn() as one, pool._manager.spawn() as two, Switch() as switch:
        playing = [
            switch.fork_promise(one.call, steps, f"{seed} one", *things),
            switch.fork_promise(two.call, steps, f"{seed} two", *things),
            switch.fork_promise(steps, f"{seed} home", *things),
        ]
        return [await promise for promise in playing]


# Streams


async def adds_and_takes(seed: str, stream: Stream[Any]) -> tuple[list[Any], list[Any]]:
    """What was added for certain, and what was taken, in the order of each fiber."""
    added: list[Any] = []
    taken: list[Any] = []

    async def steps(draw: random.Random, name: str) -> None:
        for number in range(STEPS):
            item = (name, number)
            what = draw.randrange(6)
            if what == 0:
                if stream.add_nonblocking(item):
                    added.append(item)
            elif what == 1:
                found = stream.take_nonblocking()
                if found is not None:
                    taken.append(found)
            elif what in (2, 3):
                done, _ = await disturbed(draw, lambda item=item: stream.add(item), PATIENCE_SECONDS)  # type: ignore[misc]
                if done:
                    added.append(item)
            else:
                done, found = await disturbed(draw, stream.take, PATIENCE_SECONDS)
                if done:
                    taken.append(found)

    await play(seed, steps)
    return added, taken


def sent_in_order(taken: list[Any]) -> None:
    """Each sender's items came in the order in which they were added."""
    latest: dict[str, int] = {}
    for name, number in taken:
        assert latest.get(name, -1) < number, (name, number, taken)
        latest[name] = number


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("capacity", [0, 1, 5, 50])
def test_no_item_is_lost_or_doubled(capacity: int, seed: int, link: str) -> None:  # S39 S41
    async def main(pool: Any) -> None:
        stream: Stream[Any] = Stream(capacity)
        records = await everywhere(pool, seed, adds_and_takes, stream)
        left: list[Any] = []
        while (item := stream.take_nonblocking()) is not None:
            left.append(item)
        added = Counter(item for record in records for item in record[0])
        taken = Counter(item for record in records for item in record[1]) + Counter(left)
        assert added == taken, (added - taken, taken - added)
        assert max(added.values()) == 1
        assert not stream._takers
        assert not stream._adders

    in_pool(main, link)


async def add_in_order(seed: str, stream: Stream[Any], count: int) -> int:
    """One fiber that adds with disturbances, each item until it is there."""
    draw = random.Random(seed)
    for number in range(count):
        while not (await disturbed(draw, lambda number=number: stream.add((seed, number))))[0]:  # type: ignore[misc]
            pass
    return count


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("capacity", [0, 1, 3, 50])
def test_the_items_of_each_sender_come_in_its_order(capacity: int, seed: int, link: str) -> None:  # S39 S41
    count = 60

    async def main(pool: Any) -> None:
        stream: Stream[Any] = Stream(capacity)
        taken: list[Any] = []
        draw = random.Random(seed)

        async def take_all() -> None:
            while len(taken) < 3 * count:
                done, item = await disturbed(draw, stream.take)
                if done:
                    taken.append(item)

        async with Switch() as switch:
            switch.fork(take_all)
            await everywhere(pool, seed, add_in_order, stream, count)
        sent_in_order(taken)
        assert len(set(taken)) == 3 * count
        assert stream.is_empty

    in_pool(main, link)


# Locks and permits


async def locks(seed: str, mutex: Mutex, inside: Stream[str]) -> int:
    """Each section takes the only token, and puts it back: if two were inside, one would find it missing."""
    sections = 0

    async def steps(draw: random.Random, _: str) -> None:
        nonlocal sections

        async def section() -> None:
            nonlocal sections
            async with mutex.ro():
                # What is counted was entered and left, whatever came in between.
                token = inside.take_nonblocking()
                assert token == "token", "two are inside"
                try:
                    if draw.randrange(3) == 0:
                        await fiber.yield_now()
                finally:
                    assert inside.add_nonblocking(token)
                    sections += 1

        for _ in range(STEPS):
            if draw.randrange(5) == 0:
                if mutex.try_lock():
                    assert inside.take_nonblocking() == "token"
                    assert inside.add_nonblocking("token")
                    mutex.unlock()
            else:
                await disturbed(draw, section)

    await play(seed, steps)
    return sections


@pytest.mark.parametrize("seed", SEEDS)
def test_no_two_hold_a_mutex_and_none_is_left_held(seed: int, link: str) -> None:  # S44 S49
    async def main(pool: Any) -> None:
        mutex = Mutex()
        inside: Stream[str] = Stream(1)
        await inside.add("token")
        assert sum(await everywhere(pool, seed, locks, mutex, inside))
        assert not mutex.is_locked
        assert not mutex._waiters
        await mutex.lock()
        mutex.unlock()

    in_pool(main, link)


async def writes(seed: str, mutex: Mutex) -> str:
    """Sections that may not be cancelled halfway; every one must end, or be poisoned by the first that failed."""
    ended: Counter[str] = Counter()

    async def steps(draw: random.Random, _: str) -> None:
        async def section() -> None:
            async with mutex.rw(protect=True):
                await fiber.yield_now()

        for _ in range(STEPS // 2):
            try:
                await disturbed(draw, section)
            except Poisoned:
                ended["poisoned"] += 1

    await play(seed, steps)
    return "poisoned" if ended else "sound"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_protected_section_that_is_cancelled_poisons_nothing(seed: int, link: str) -> None:  # S46 S49
    async def main(pool: Any) -> None:
        mutex = Mutex()
        assert await everywhere(pool, seed, writes, mutex) == ["sound"] * 3
        assert not mutex.is_locked
        assert not mutex.is_poisoned

    in_pool(main, link)


async def acquires(seed: str, semaphore: Semaphore) -> int:
    """Tells how many permits it had at most at one time."""
    now = most = 0

    async def steps(draw: random.Random, _: str) -> None:
        async def section() -> None:
            nonlocal now, most
            async with semaphore:
                now += 1
                most = max(most, now)
                try:
                    for _ in range(draw.randrange(3)):
                        await fiber.yield_now()
                finally:
                    now -= 1

        for _ in range(STEPS):
            await disturbed(draw, section)

    await play(seed, steps)
    return most


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("permits", [1, 3])
def test_no_permit_is_lost_or_made(permits: int, seed: int, link: str) -> None:  # S49 S50
    async def main(pool: Any) -> None:
        semaphore = Semaphore(permits)
        most = await everywhere(pool, seed, acquires, semaphore)
        assert max(most) <= permits
        assert semaphore.value == permits
        assert not semaphore._waiters

    in_pool(main, link)


async def uses(seed: str, resources: Pool[str]) -> None:
    async def steps(draw: random.Random, _: str) -> None:
        async def use() -> None:
            async with resources.use() as resource:
                assert resource.startswith("resource")
                await fiber.yield_now()

        for _ in range(STEPS // 2):
            await disturbed(draw, use)

    await play(seed, steps)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_resource_is_lost(seed: int, link: str) -> None:  # S54
    async def main(pool: Any) -> None:
        made: list[str] = []

        def create() -> str:
            made.append(f"resource {len(made)}")
            return made[-1]

        resources = Pool(2, create)
        await everywhere(pool, seed, uses, resources)
        assert len(made) <= 2
        async with resources.use() as one, resources.use() as other:
            assert {one, other} <= {*made}

    in_pool(main, link)


async def waits(seed: str, mutex: Mutex, condition: Condition) -> None:
    async def steps(draw: random.Random, _: str) -> None:
        async def wait() -> None:
            async with mutex.ro():
                try:
                    await condition.wait(mutex)
                finally:
                    assert mutex._is_mine()

        for _ in range(STEPS // 2):
            if draw.randrange(2):
                condition.broadcast()
            await disturbed(draw, wait, PATIENCE_SECONDS)

    await play(seed, steps)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_wait_that_is_cancelled_or_woken_has_its_mutex_and_leaves_none_held(seed: int, link: str) -> None:  # S51
    async def main(pool: Any) -> None:
        mutex, condition = Mutex(), Condition()
        await everywhere(pool, seed, waits, mutex, condition)
        assert not mutex.is_locked
        assert not mutex._waiters
        assert not condition._waiters

    in_pool(main, link)
