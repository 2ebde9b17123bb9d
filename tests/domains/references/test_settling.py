"""What a domain hears in the midst of a fiber's turn, while it sees that what it has posted elsewhere has arrived.

Stopping the process that it was posted to holds a domain at that point, for as long as a test wants; and as long as
this process does nothing, no other hears how a domain has ended whose link is gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import domains
from domains import (
    DomainDied,
    Lazy,
    Mutex,
    Pool,
    Promise,
    Resolver,
    Semaphore,
    Stream,
    Switch,
    fiber,
    run_in_thread,
    timeout,
)

from .remote import signal_by, turns, wait_for

kept: list[Any] = []


async def make_stream() -> Stream[int]:
    kept.append(Stream(8))
    stream: Stream[int] = kept[-1]
    return stream


async def make(kind: Any, *args: Any) -> tuple[Any, Lazy[None]]:
    """An object, and one that says whether its home has heard what it was told."""
    kept.append(kind(*args))
    return kept[-1], Lazy(fiber.await_cancel)


def resource() -> str:
    return "the only one"


@contextmanager
def stopped(domain: Any) -> Iterator[None]:
    os.kill(domain.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(domain.pid, signal.SIGCONT)


async def link_gone(references: Any, address: int) -> None:
    while address in references._routes:
        await fiber.yield_now()


# A resource that is given to a domain just as it dies


async def use_and_begin(pool: Pool[str], begun: Resolver[None]) -> None:
    async with Switch() as switch:

        async def use() -> None:
            async with pool.use():
                await fiber.await_cancel()

        switch.fork(use)
        await turns()
        begun.resolve(None)


async def hand_over_resource(elsewhere: Any, has: Resolver[None], waited_for: Resolver[None], go: str) -> str:
    await elsewhere.add(0)
    references = elsewhere._references
    async with kept[0].use():
        has.resolve(None)
        while not references.calls.served:
            await fiber.yield_now()
        ((user, _),) = references.calls.served
        waited_for.resolve(None)
        await link_gone(references, user)
        await elsewhere.add(1)  # for a promised place: it is on its way
        signal_by(go)
    with timeout(20):
        async with kept[0].use() as resource:
            return str(resource)


def test_a_resource_given_to_a_domain_that_dies_meanwhile_comes_back(link: str, tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    os.mkfifo(go)

    async def main(env: domains.Environment) -> str:
        spawn = env.domain_mgr.spawn
        async with spawn() as home, spawn() as user, spawn() as busy, Switch() as switch:
            pool, heard = await home.call(make, Pool, 1, resource)
            stream = await busy.call(make_stream)
            has, had = Promise[None].create()
            waited_for, waits = Promise[None].create()
            begun, begin = Promise[None].create()
            handed_over = switch.fork_promise(home.call, hand_over_resource, stream, had, waits, go)
            await has
            using = switch.fork_promise(user.call, use_and_begin, pool, begin)
            await begun
            await waited_for
            with stopped(busy):
                os.kill(user.pid, signal.SIGKILL)
                wait_for(go)
                with pytest.raises(DomainDied):
                    await using
                assert not heard.is_forced
            return await handed_over

    assert domains.run(main, link=link) == "the only one"


# A mutex that is promised to another domain while its home's fiber is about to wait for it


async def hold(mutex: Mutex, held: Resolver[None], release: str) -> None:
    async with mutex.ro():
        held.resolve(None)
        await run_in_thread(wait_for, release)


async def lock_and_begin(mutex: Mutex, begun: Resolver[None], had: Stream[str]) -> None:
    async with Switch() as switch:

        async def lock() -> None:
            async with mutex.ro():
                await had.add("the first")

        switch.fork(lock)
        await turns()
        begun.resolve(None)


async def lock_behind(
    elsewhere: Any, had: Stream[str], waited_for: Resolver[None], release: str, go: str, dies: bool
) -> None:
    mutex = kept[0]
    await elsewhere.add(0)
    references = elsewhere._references
    while not mutex._waiters:
        await fiber.yield_now()
    ((first, _),) = references.calls.served
    waited_for.resolve(None)
    if dies:
        await link_gone(references, first)
    else:
        await run_in_thread(wait_for, go)
    await elsewhere.add(1)
    signal_by(release)
    while mutex._word.holder is not None:
        pass
    if dies:
        signal_by(go)
    with timeout(20):
        async with mutex.ro():
            await had.add("the home")
        async with mutex.ro():
            pass


@pytest.mark.parametrize("dies", [False, True])
def test_a_mutex_goes_to_the_first_who_waits_if_that_one_lives(link: str, tmp_path: Path, dies: bool) -> None:
    release, go = str(tmp_path / "release"), str(tmp_path / "go")
    os.mkfifo(release)
    os.mkfifo(go)

    async def main(env: domains.Environment) -> list[str]:
        spawn = env.domain_mgr.spawn
        async with spawn() as home, spawn() as holder, spawn() as first, spawn() as busy, Switch() as switch:
            mutex, heard = await home.call(make, Mutex)
            stream = await busy.call(make_stream)
            order: Stream[str] = Stream(2)
            held, hold_it = Promise[None].create()
            waited_for, waits = Promise[None].create()
            begun, begin = Promise[None].create()
            switch.fork(holder.call, hold, mutex, hold_it, release)
            await held
            behind = switch.fork_promise(home.call, lock_behind, stream, order, waits, release, go, dies)
            ahead = switch.fork_promise(first.call, lock_and_begin, mutex, begin, order)
            await begun
            await waited_for
            with stopped(busy):
                if dies:
                    os.kill(first.pid, signal.SIGKILL)
                    wait_for(go)
                    with pytest.raises(DomainDied):
                        await ahead
                    assert not heard.is_forced
                else:
                    signal_by(go)
                    assert await order.take() == "the first"
            await behind
            return [await order.take() for _ in range(len(order))]

    assert domains.run(main, link=link) == ["the home"]


# A plain job at a stream's home that asks for the places of a domain back whose end nobody has told it of


async def keep_and_add(stream: Any) -> int:
    kept.append(stream)
    await stream.add(0)
    assert stream._places
    address: int = stream._references.address
    return address


@contextmanager
def as_in_a_plain_job() -> Iterator[None]:
    """As the job runner has it: no loop is said to run."""
    loop = asyncio.get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


async def add_all(dying: int, watches: Resolver[None], go: str) -> int:
    stream = kept[0]
    assert set(stream._export.held) > {dying}
    watches.resolve(None)
    await link_gone(stream._references, dying)
    signal_by(go)
    with as_in_a_plain_job():
        return sum(stream.add_nonblocking(each) for each in range(stream.capacity))


async def take_all() -> int:
    """How many items there were; then as many as the capacity can be added."""
    stream = kept[0]
    count = 0
    with timeout(20):
        while not stream.is_empty:
            await stream.take()
            count += 1
        for each in range(stream.capacity):
            await stream.add(each)
    return count


def test_a_plain_job_recalls_places_of_a_domain_that_has_just_died(link: str, tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    os.mkfifo(go)

    async def main(env: domains.Environment) -> tuple[int, int]:
        spawn = env.domain_mgr.spawn
        async with spawn() as home, spawn() as dying, spawn() as living, Switch() as switch:
            stream, _ = await home.call(make, Stream, 8)
            address = await dying.call(keep_and_add, stream)
            await living.call(keep_and_add, stream)
            watched, watches = Promise[None].create()
            adding = switch.fork_promise(home.call, add_all, address, watches, go)
            await watched
            os.kill(dying.pid, signal.SIGKILL)
            wait_for(go)
            added = await adding
            return added, await home.call(take_all)

    added, taken = domains.run(main, link=link)
    assert taken == 2 + added


# A finalizer that tells something in the midst of a flush


def test_what_is_told_in_the_midst_of_writing_does_not_wait_for_what_was_posted_elsewhere(link: str) -> None:
    async def main(env: domains.Environment) -> int:
        spawn = env.domain_mgr.spawn
        async with spawn() as one, spawn() as other:
            stream: Any = await one.call(make_stream)
            semaphore, _ = await other.call(make, Semaphore, 2)
            await semaphore.acquire()
            await semaphore.acquire()
            await stream.add(0)
            references = stream._references
            to_other = references.link_to(semaphore.home)
            codec = to_other._codec

            class Finalizing:
                decode = codec.decode

                def encode(self, messages: list[Any]) -> bytes:
                    to_other._codec = codec
                    assert references.calls._posted
                    semaphore.release()
                    envelope: bytes = codec.encode(messages)
                    return envelope

            to_other.hold()
            semaphore.release()
            await stream.add(1)
            to_other._codec = Finalizing()
            to_other.flush()
            value: int = semaphore.value
            return value

    assert domains.run(main, link=link) == 2
