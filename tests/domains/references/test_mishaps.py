"""What goes wrong in the use of an object is told to its user, gives back what was taken, and disturbs no other."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from domains import (
    Condition,
    DomainDied,
    DomainUnavailable,
    Mutex,
    NotPicklable,
    Poisoned,
    Pool,
    Promise,
    Resolver,
    Semaphore,
    Stream,
    Switch,
    fiber,
    timeout,
)
from domains.ipc.lockword import LockWord
from domains.protocol import ReleaseReference
from domains.references.kind import Export
from domains.references.mutex import MutexKind
from domains.references.semaphore import SemaphoreKind, _acquire

from . import moments
from .remote import Opens, in_pool


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("cannot travel")
        self.lock = threading.Lock()


class Unopenable(Exception):
    """Is pickled, and cannot be rebuilt."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__("one argument")


# Semaphores


_kept: list[Any] = []


async def acquire(semaphore: Semaphore) -> None:
    await semaphore.acquire()
    _kept.append(semaphore)


async def release_kept() -> None:
    _kept.pop().release()


async def kill(domain: Any) -> None:
    """Returns once it is known here that it is dead, and what it held has come back."""
    os.kill(domain.pid, signal.SIGKILL)
    with pytest.raises(DomainDied):
        await domain.call(fiber.await_cancel)


async def forget() -> None:
    _kept.clear()
    gc.collect()
    await fiber.yield_now()


def test_a_permit_that_was_released_in_its_stead_is_not_released_when_its_domain_dies(link: str) -> None:  # S50
    async def main(pool: Any) -> None:
        semaphore = Semaphore(1)
        async with pool._manager.spawn() as domain:
            await domain.call(acquire, semaphore)
            semaphore.release()
            await kill(domain)
        assert semaphore.value == 1

    in_pool(main, link)


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("taken", ["before", "after"])
def test_a_permit_released_in_its_stead_that_the_home_took_does_not_come_back_twice(
    link: str, taken: str, bounded: bool
) -> None:  # S50
    async def main(pool: Any) -> None:
        semaphore = Semaphore(1, bounded=bounded)
        async with pool._manager.spawn() as domain, Switch() as switch:
            await domain.call(acquire, semaphore)
            if taken == "before":
                switch.fork(semaphore.acquire)
                await fiber.yield_now()
                semaphore.release()
            else:
                semaphore.release()
                await semaphore.acquire()
            await kill(domain)
            # Of one without a bound nobody knows how many are out: each that a domain acquired comes back with its end.
            assert semaphore.value == (0 if bounded else 1)
            semaphore.release()

    in_pool(main, link)


@pytest.mark.parametrize("taken", ["before", "after"])
def test_a_permit_released_in_its_stead_that_another_took_does_not_come_back_twice(
    link: str, taken: str
) -> None:  # S50
    async def main(pool: Any) -> None:
        semaphore = Semaphore(1)
        async with pool._manager.spawn() as domain, pool._manager.spawn() as other, Switch() as switch:
            await domain.call(acquire, semaphore)
            if taken == "before":
                switch.fork(other.call, acquire, semaphore)
                while not semaphore._waiters:
                    await fiber.yield_now()
                semaphore.release()
            else:
                semaphore.release()
                await other.call(acquire, semaphore)
            await kill(domain)
            assert semaphore.value == 0
            await other.call(release_kept)
            await other.call(forget)
        assert semaphore.value == 1

    in_pool(main, link)


@pytest.mark.parametrize("last", [forget, release_kept])
def test_a_permit_that_was_released_in_its_stead_leaves_the_domain_alive(link: str, last: Any) -> None:  # S50
    async def main(pool: Any) -> None:
        semaphore = Semaphore(1)
        async with pool._manager.spawn() as domain:
            await domain.call(acquire, semaphore)
            semaphore.release()
            await domain.call(last)
            references = pool._manager.references
            while references.exports:
                await domain.call(forget)
            assert domain.alive
        assert semaphore.value == 1

    in_pool(main, link)


async def release_by_another_reference(semaphore: Semaphore) -> None:
    semaphore._held = 0  # type: ignore[attr-defined]  # as one that came before the loss of the last was told
    semaphore.release()


def test_a_permit_released_by_a_later_reference_is_released_once(link: str) -> None:  # S50
    async def main(pool: Any) -> None:
        semaphore = Semaphore(2)
        await semaphore.acquire()
        async with pool._manager.spawn() as domain:
            await domain.call(acquire, semaphore)
            await domain.call(release_by_another_reference, semaphore)
            assert semaphore.value == 1
            await kill(domain)
        assert semaphore.value == 1

    in_pool(main, link)


def test_a_permit_released_by_a_later_reference_to_one_who_waits_is_counted_once(link: str) -> None:  # S50
    async def main(pool: Any) -> None:
        semaphore = Semaphore(2)
        async with pool._manager.spawn() as domain, pool._manager.spawn() as other, Switch() as switch:
            await domain.call(acquire, semaphore)
            await domain.call(acquire, semaphore)
            taken = switch.fork_promise(other.call, acquire, semaphore)
            while not semaphore._waiters:
                await fiber.yield_now()
            await domain.call(release_by_another_reference, semaphore)
            await taken
            await kill(domain)
            assert semaphore.value == 1
            await other.call(release_kept)
            await other.call(forget)
        assert semaphore.value == 2

    in_pool(main, link)


class _Answered:
    """A call that is answered while others release, as where what was posted elsewhere is waited for before that."""

    def __init__(self, export: Export, meanwhile: Callable[[], None]) -> None:
        self.export = export
        self.sender = 5
        self.calls = None
        self._meanwhile = meanwhile

    def resume(self, _: object) -> bool:
        self._meanwhile()
        return True


def test_a_permit_that_is_granted_as_all_are_released_does_not_come_back() -> None:  # S50
    semaphore = Semaphore(1)
    export = Export(1, semaphore, "semaphore")
    assert _acquire(semaphore, _Answered(export, semaphore.release)) is None  # type: ignore[arg-type]
    assert semaphore.value == 1
    SemaphoreKind().domain_gone(export, 5, DomainDied("it"))
    assert semaphore.value == 1
    assert not export.held


# Mutexes


async def fail_writing(mutex: Mutex, error: str) -> None:
    async with mutex.rw():
        raise Unpicklable if error == "unpicklable" else Unopenable(1, 2)


@pytest.mark.parametrize("error", ["unpicklable", "unopenable"])
def test_a_section_that_fails_with_what_cannot_travel_poisons_all_the_same(link: str, error: str) -> None:  # S46
    async def main(pool: Any) -> None:
        mutex = Mutex()
        with pytest.raises(NotPicklable):
            await pool.submit(fail_writing, mutex, error, weight=0.1)
        with pytest.raises(Poisoned) as caught:
            await mutex.lock()
        assert isinstance(caught.value.__cause__, NotPicklable)

    in_pool(main, link)


async def lock(mutex: Mutex, other: Mutex, how: str = "lock") -> None:
    await {"lock": mutex.lock, "ro": mutex.ro().__aenter__, "rw": mutex.rw().__aenter__}[how]()
    _kept.extend((other, mutex))


async def keep(mutex: Mutex) -> None:
    _kept.append(mutex)


async def forget_last() -> None:
    _kept.pop()
    gc.collect()
    await fiber.yield_now()


def test_a_mutex_whose_only_other_domain_forgets_it_locked_goes_to_who_waits_at_home(link: str) -> None:  # S44
    async def main(pool: Any) -> None:
        mutex, other = Mutex(), Mutex()
        with timeout(20):
            async with Switch() as switch:
                await pool.submit(lock, mutex, other, weight=0.1)
                switch.fork(mutex.lock)
                while not mutex._waiters:
                    await fiber.yield_now()
                await pool.submit(forget_last, weight=0.1)
        await pool.submit(forget, weight=0.1)

    in_pool(main, link)


@pytest.mark.parametrize("how", ["lock", "ro", "rw"])
def test_a_mutex_that_another_domain_forgets_locked_comes_back_as_from_one_that_died(link: str, how: str) -> None:
    async def main(pool: Any) -> None:
        mutex, other = Mutex(), Mutex()
        async with pool._manager.spawn() as domain:
            await domain.call(keep, mutex)
            await pool.submit(lock, mutex, other, how, weight=0.1)
            await pool.submit(forget_last, weight=0.1)
            with timeout(20), pytest.raises(Poisoned) if how == "rw" else contextlib.nullcontext():
                await mutex.lock()
            await pool.submit(forget, weight=0.1)

    in_pool(main, link)


async def open_no_word(times: int) -> None:
    attach = LockWord.attach
    left = itertools.count(times, -1)

    def fail(descriptor: bytes) -> LockWord:
        if next(left) > 0:
            raise OSError(errno.EMFILE, "Too many open files")
        return attach(descriptor)

    LockWord.attach = fail  # type: ignore[method-assign, assignment]


async def lock_and_unlock(mutex: Mutex, tries: bool) -> bool:
    with timeout(20):
        if not tries:
            await mutex.lock()
        elif not mutex.try_lock():
            return False
        mutex.unlock()
        return True


@pytest.mark.parametrize("tries", [False, True])
def test_a_mutex_that_came_for_want_of_descriptors_without_its_word_is_locked_once_there_are_some(
    link: str, tries: bool
) -> None:  # S44 S48
    async def main(pool: Any) -> None:
        await pool.submit(open_no_word, 1, weight=0.1)
        mutex = Mutex()
        assert await pool.submit(lock_and_unlock, mutex, tries, weight=0.1)

    in_pool(main, link)


def test_a_mutex_whose_word_cannot_be_opened_says_so_and_stays_free(link: str) -> None:  # S44 S48
    async def main(pool: Any) -> None:
        await pool.submit(open_no_word, 1_000_000, weight=0.1)
        mutex = Mutex("ledger")
        for tries in (False, True):
            with pytest.raises(DomainUnavailable, match=r"<mutex 'ledger', of domain 'main'> .*Too many open files"):
                await pool.submit(lock_and_unlock, mutex, tries, weight=0.1)
            with timeout(20):
                await mutex.lock()
            mutex.unlock()

    in_pool(main, link)


async def hand_on(mutex: Mutex) -> bytes:
    _kept.append(mutex)
    return MutexKind().label_of(mutex)[1]


def test_a_mutex_that_is_handed_on_is_found_at_its_home_whoever_ends_meanwhile(link: str) -> None:
    async def main(pool: Any) -> None:
        mutex = Mutex()
        assert await pool.submit(hand_on, mutex, weight=0.1) == MutexKind().label_of(mutex)[1]
        await pool.submit(forget, weight=0.1)

    in_pool(main, link)


# Pools of resources


async def use(resources: Pool[Any]) -> None:
    async with resources.use():
        raise AssertionError("it cannot travel")


@pytest.mark.parametrize("make", [threading.Lock, Opens])
def test_a_resource_that_cannot_travel_comes_back(link: str, make: Any) -> None:  # S54
    async def main(pool: Any) -> None:
        resources: Pool[Any] = Pool(1, make)
        for _ in range(2):
            with pytest.raises(NotPicklable):
                await pool.submit(use, resources, weight=0.1)
        async with resources.use():
            pass

    in_pool(main, link)


# Conditions


async def make_condition() -> Condition:
    return Condition()


async def wait_with_mutex(mutex: Mutex, condition: Condition, waits: Resolver[None]) -> tuple[bool, bool]:
    async with mutex.ro():
        waits.resolve(None)
        try:
            await condition.wait(mutex)
        except DomainDied:
            return mutex._is_mine(), mutex.is_locked
    raise AssertionError("the condition's home is alive")


def test_a_wait_whose_condition_dies_holds_the_mutex_again(link: str) -> None:  # S51
    async def main(pool: Any) -> None:
        mutex = Mutex()
        promise, waits = Promise[None].create()
        async with pool._manager.spawn() as domain, Switch() as switch:
            condition = await domain.call(make_condition)
            there = pool.submit_fork(switch, wait_with_mutex, mutex, condition, waits, weight=0.1)
            await promise
            async with mutex.ro():  # it can be locked only once the other waits
                os.kill(domain.pid, signal.SIGKILL)
            assert await there == (True, True)
            with pytest.raises(DomainDied):
                await domain.call(fiber.await_cancel)
        assert not mutex.is_locked

    in_pool(main, link)


# Resolvers and promises


def test_a_resolver_lost_with_the_domain_that_it_was_sent_to_fails_its_promise(link: str) -> None:  # S37
    async def main(pool: Any) -> None:
        promise, resolver = Promise[None].create()
        stream: Stream[Any] = Stream(1)
        async with pool._manager.spawn() as domain, Switch() as switch:
            there = switch.fork_promise(domain.call, take_and_die, stream)
            while not stream._takers:
                await fiber.yield_now()
            await stream.add(resolver)
            with pytest.raises(DomainDied):
                await promise
            with pytest.raises(DomainDied):
                await there

    in_pool(main, link)


async def take_and_die(stream: Stream[Any]) -> None:
    """Dies before it opens what it was sent."""
    references = moments.registry()
    for conversation in references._conversations:
        handlers = conversation._handlers
        for kind in list(handlers):
            if kind.__name__ == "CallAnswered":
                handlers[kind] = lambda message, buffers: moments.die()
    await stream.take()


async def look(promise: Promise[Any]) -> bool:
    return promise.is_resolved


def test_a_promise_keeps_no_watcher_whose_reference_is_gone(link: str) -> None:
    async def main(pool: Any) -> None:
        promise, resolver = Promise[None].create()
        references = pool._manager.references
        for _ in range(5):
            assert not await pool.submit(look, promise, weight=0.1)
            while references.exports:
                await pool.submit(gc.collect, weight=0.0)
        assert promise._first is None
        resolver.resolve(None)

    in_pool(main, link)


# Broken answers


def test_an_item_that_cannot_be_opened_fails_its_take_alone(link: str) -> None:
    async def main(pool: Any) -> None:
        stream: Stream[Any] = Stream(2)
        await stream.add(Opens())
        await stream.add(1)
        assert await pool.submit(take_two, stream, weight=0.1) == ["NotPicklable", 1]

    in_pool(main, link)


async def take_two(stream: Stream[Any]) -> list[Any]:
    seen: list[Any] = []
    for _ in range(2):
        try:
            seen.append(await stream.take())
        except NotPicklable as error:
            seen.append(type(error).__name__)
    return seen


def test_a_tell_that_cannot_be_done_is_logged_and_leaves_the_link_alone(
    link: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(pool: Any) -> None:
        async with pool._manager.spawn() as domain:
            semaphore = Semaphore(1)
            await domain.call(acquire, semaphore)
            semaphore.release()
            await domain.call(release_kept)
            assert domain.alive
        assert "could not release" in caplog.text

    in_pool(main, link)


# Messages that come back


async def resolve_with_five(resolver: Resolver[int]) -> int:
    resolver.resolve(5)
    return 5


def test_a_message_that_comes_back_from_a_domain_does_not_make_its_sender_part_of_that(link: str) -> None:
    async def main(pool: Any) -> None:
        manager = pool._manager
        references = manager.references
        promise, resolver = Promise[int].create()
        async with manager.spawn() as other:
            async with manager.spawn() as domain:
                await other.call(os.getpid)
                await domain.call(os.getpid)
                own = ReleaseReference(references.address, references.address, 1)
                domain._handle.conversation.on_messages([own], [])
            # It has ended, and the other has heard so: what ended with it are its own objects.
            assert await other.call(resolve_with_five, resolver) == 5
            assert promise.is_resolved
            assert await promise == 5

    in_pool(main, link)
