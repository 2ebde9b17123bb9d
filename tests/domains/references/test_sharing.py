"""What was taken hold of before an object was shared, or while it was, goes right when it is done at another time."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from domains import Closed, Mutex, Promise, Resolver, Stream, Switch, fiber

from .remote import in_pool, turns

_kept: list[Any] = []


def keep(thing: Any) -> None:
    _kept.append(thing)


def forget() -> None:
    _kept.clear()
    gc.collect()


async def is_forgotten(pool: Any, domain: Any) -> None:
    """Wait until no other domain knows anything of this one."""
    await domain.call(forget)
    while pool._manager.references.exports:
        gc.collect()
        await domain.call(forget)


async def hold(mutex: Mutex, locked: Resolver[None], release: Promise[None]) -> None:
    async with mutex.rw():
        locked.resolve(None)
        await release


async def try_lock(mutex: Mutex) -> bool:
    if mutex.try_lock():
        mutex.unlock()
        return True
    return False


def test_a_lock_and_an_unlock_from_before_a_mutex_was_shared_mind_those_elsewhere(link: str) -> None:
    async def main(pool: Any) -> None:
        mutex = Mutex()
        lock, unlock = mutex.lock, mutex.unlock
        steps: list[Any] = []
        is_locked, locked = Promise[None].create("locked")
        release, let_go = Promise[None].create("release")

        async def lock_and_unlock(domain: Any) -> None:
            await lock()
            steps.append("locked")
            steps.append(await domain.call(try_lock, mutex))
            unlock()
            steps.append(await domain.call(try_lock, mutex))

        async with pool._manager.spawn() as domain, Switch() as switch:
            switch.fork(domain.call, hold, mutex, locked, release)
            await is_locked
            switch.fork(lock_and_unlock, domain)
            await turns()
            assert not steps
            let_go.resolve(None)
        assert steps == ["locked", False, True]

    in_pool(main, link)


def test_a_lock_and_an_unlock_from_while_a_mutex_was_shared_work_when_it_is_not(link: str) -> None:
    async def main(pool: Any) -> None:
        mutex = Mutex()
        async with pool._manager.spawn() as domain:
            await domain.call(keep, mutex)
            lock, unlock = mutex.lock, mutex.unlock
            locking = lock()
            await is_forgotten(pool, domain)
            await locking
            assert mutex.is_locked
            unlock()
            assert not mutex.is_locked
            await lock()
            unlock()

    in_pool(main, link)


@pytest.mark.parametrize("is_shared_first", [True, False])
def test_a_wait_for_a_mutex_is_cancelled_in_whatever_state_that_is(link: str, is_shared_first: bool) -> None:
    async def main(pool: Any) -> None:
        mutex = Mutex()
        async with pool._manager.spawn() as domain, mutex.rw():
            if is_shared_first:
                await domain.call(keep, mutex)
            async with Switch() as switch:
                switch.fork(mutex.lock)
                await turns()
                if is_shared_first:
                    await is_forgotten(pool, domain)
                else:
                    await domain.call(keep, mutex)
                switch.cancel()
        if not is_shared_first:
            async with pool._manager.spawn() as other:
                assert await other.call(try_lock, mutex)
        async with mutex.rw():
            pass

    in_pool(main, link)


async def fill(stream: Stream[int]) -> None:
    keep(stream)
    await stream.add(0)


async def add_more(count: int) -> int:
    for number in range(1, count):
        try:
            await _kept[0].add(number)
        except Closed:
            return number
    return count


def test_what_was_taken_of_a_stream_before_it_was_shared_minds_those_elsewhere(link: str) -> None:
    async def main(pool: Any) -> None:
        stream: Stream[int] = Stream(10)
        take, add_nonblocking, close = stream.take, stream.add_nonblocking, stream.close
        async with pool._manager.spawn() as domain:
            await domain.call(fill, stream)
            while add_nonblocking(100):  # in places that are not promised, and then in those that come back
                pass
            assert len(stream) + stream._promised <= 10  # type: ignore[attr-defined]
            assert await take() == 0
            while len(stream):
                assert await take() == 100
            async with Switch() as switch:
                taking = switch.fork_promise(take)
                await turns()
                close()
                with pytest.raises(Closed):
                    await taking
            assert await domain.call(add_more, 100) < 100
            await domain.call(forget)

    in_pool(main, link)


def test_what_was_taken_of_a_stream_while_it_was_shared_works_when_it_is_not(link: str) -> None:
    async def main(pool: Any) -> None:
        stream: Stream[int] = Stream(2)
        async with pool._manager.spawn() as domain:
            await domain.call(fill, stream)
            add, add_nonblocking, take, close = stream.add, stream.add_nonblocking, stream.take, stream.close
            taking, adding, iterating = take(), add(1), anext(aiter(stream))
            await is_forgotten(pool, domain)
        await adding
        assert not add_nonblocking(2)
        assert await taking == 0
        assert await iterating == 1
        assert add_nonblocking(3)
        assert await take() == 3
        close()
        with pytest.raises(Closed):
            await take()
        await fiber.yield_now()

    in_pool(main, link)


def test_a_mutex_is_shown_also_as_another_domain_gives_it_up(link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(pool: Any) -> None:
        mutex: Any = Mutex("shown")
        locked, is_locked = Promise[None].create("locked")
        release, let_go = Promise[None].create("release")
        async with pool._manager.spawn() as domain, Switch() as switch:
            switch.fork(domain.call, hold, mutex, is_locked, release)
            await locked
            holder = mutex._word.holder
            assert holder is not None
            seen = iter([holder])  # and None from then on, as if it were given up between two looks
            monkeypatch.setattr(type(mutex._word), "holder", property(lambda _: next(seen, None)))
            assert repr(mutex) == f"<mutex 'shown', held by process {holder.pid}, 0 waiting>"
            assert repr(mutex) == "<mutex 'shown', free>"
            monkeypatch.undo()
            let_go.resolve(None)

    in_pool(main, link)
