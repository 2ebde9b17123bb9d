"""Every primitive in another domain than its home: the same class, methods and meaning, over both kinds of link."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from domains import (
    Cancelled,
    Closed,
    Condition,
    DomainDied,
    Lazy,
    Mutex,
    Poisoned,
    Pool,
    Promise,
    Resolver,
    Semaphore,
    Stream,
    Switch,
    fiber,
    move_on_after,
)

from . import moments
from .remote import in_pool, turns


class Broken(Exception):
    """Raised inside a critical section."""


# Streams


async def add_all(stream: Stream[Any], items: list[Any]) -> None:
    for item in items:
        await stream.add(item)


async def take_until_closed(stream: Stream[Any]) -> list[Any]:
    return [item async for item in stream]


def test_items_go_from_there_to_here_in_order(link: str) -> None:  # S39
    async def main(pool: Any) -> list[int]:
        stream: Stream[int] = Stream(3)
        async with Switch() as switch:
            pool.submit_fork(switch, add_all, stream, list(range(20)), weight=0.1)
            return [await stream.take() for _ in range(20)]

    assert in_pool(main, link) == list(range(20))


def test_items_go_from_here_to_there_until_the_stream_is_closed(link: str) -> None:  # S42
    async def main(pool: Any) -> list[int]:
        stream: Stream[int] = Stream(2)
        async with Switch() as switch:
            there = pool.submit_fork(switch, take_until_closed, stream, weight=0.1)
            await add_all(stream, list(range(10)))
            stream.close()
            return await there

    assert in_pool(main, link) == list(range(10))


def test_two_other_domains_talk_by_a_stream_of_a_third(link: str) -> None:  # S39
    async def main(pool: Any) -> list[int]:
        stream: Stream[int] = Stream(2)

        async def produce() -> None:
            await pool.submit(add_all, stream, list(range(10)), weight=1.0)
            stream.close()

        async with Switch() as switch:
            there = pool.submit_fork(switch, take_until_closed, stream, weight=1.0)
            switch.fork(produce)
            return await there

    assert in_pool(main, link, 2) == list(range(10))


async def rendezvous(stream: Stream[str], began: Resolver[None]) -> str:
    add = asyncio.ensure_future(stream.add("item"))
    await asyncio.sleep(0)
    began.resolve(None)
    await add
    return "taken"


def test_a_rendezvous_across_domains_is_done_when_the_item_is_taken(link: str) -> None:  # S40
    async def main(pool: Any) -> tuple[str, str]:
        stream: Stream[str] = Stream(0)
        promise: Promise[None]
        promise, began = Promise.create()
        async with Switch() as switch:
            there = pool.submit_fork(switch, rendezvous, stream, began, weight=0.1)
            await promise
            assert not there.is_resolved
            return await stream.take(), await there

    assert in_pool(main, link) == ("item", "taken")


async def nonblocking(stream: Stream[int]) -> list[Any]:
    seen: list[Any] = [stream.take_nonblocking(), stream.add_nonblocking(1), stream.add_nonblocking(2), len(stream)]
    seen += [stream.is_empty, stream.take_nonblocking(), stream.is_empty, repr(stream), isinstance(stream, Stream)]
    return seen


def test_nonblocking_calls_and_queries_work_there(link: str) -> None:  # S39
    async def main(pool: Any) -> list[Any]:
        return await pool.submit(nonblocking, Stream(1, label="orders"), weight=0.1)

    seen = [None, True, False, 1, False, 1, True, "<stream 'orders' of capacity 1, of domain 'main'>", True]
    assert in_pool(main, link) == seen


async def cancelled_take(stream: Stream[int]) -> bool:
    with move_on_after(0.01) as scope:
        await stream.take()
    return scope.cancelled


def test_a_take_cancelled_there_is_withdrawn_here(link: str) -> None:  # S41
    async def main(pool: Any) -> tuple[bool, int | None, int]:
        stream: Stream[int] = Stream(1)
        cancelled = await pool.submit(cancelled_take, stream, weight=0.1)
        waiting = len(stream._takers)
        assert stream.add_nonblocking(5)
        return cancelled, stream.take_nonblocking(), waiting

    assert in_pool(main, link) == (True, 5, 0)


async def take_and_cancel(stream: Stream[int], go: Promise[None]) -> list[int]:
    """Cancel a take at the moment that its item may be on its way: it is taken or it is not."""
    taken: list[int] = []

    async def take() -> None:
        taken.append(await stream.take())

    async with Switch() as switch:
        switch.fork(take)
        await go
        switch.cancel()
    return taken


def test_a_take_cancelled_while_its_item_travels_has_it_or_leaves_it(link: str) -> None:  # S41
    async def main(pool: Any) -> None:
        for _ in range(20):
            stream: Stream[int] = Stream(1)
            go: Promise[None]
            go, resolver = Promise.create()
            async with Switch() as switch:
                there = pool.submit_fork(switch, take_and_cancel, stream, go, weight=0.1)
                while not stream._takers:
                    await fiber.yield_now()
                resolver.resolve(None)
                await stream.add(7)
                taken = await there
            assert [*taken, *([] if stream.is_empty else [stream.take_nonblocking()])] == [7]

    in_pool(main, link)


@pytest.mark.parametrize("operation", ["take", "lock"])
def test_what_was_done_as_a_task_was_cancelled_is_its_result(operation: str) -> None:  # S41 S49
    async def main(pool: Any) -> None:
        stream: Stream[str] = await pool.submit(Stream, 1, weight=0.1)
        mutex: Mutex = await pool.submit(Mutex, weight=0.1)
        await mutex.lock()
        task = asyncio.create_task(stream.take() if operation == "take" else mutex.lock())
        await turns()
        moments.when("before handling", "CallAnswered", 0, [], stream.home, task.cancel)  # type: ignore[attr-defined]
        try:
            if operation == "take":
                await pool.submit(add_then_return, stream, weight=0.1)
            mutex.unlock()
            assert await task == ("item" if operation == "take" else None)
            assert task.cancelling() == 1
        finally:
            moments.forget()

    in_pool(main, "socketpair")


def test_a_stream_closed_here_raises_there(link: str) -> None:  # S42
    async def main(pool: Any) -> None:
        stream: Stream[int] = Stream(0)
        async with Switch() as switch:
            there = pool.submit_fork(switch, add_all, stream, [1], weight=0.1)
            while not stream._adders:
                await fiber.yield_now()
            stream.close()
            with pytest.raises(Closed):
                await there
        with pytest.raises(Closed):
            await pool.submit(add_all, stream, [1], weight=0.1)

    in_pool(main, link)


def test_a_capacity_that_makes_no_sense_is_refused_there_as_here(link: str) -> None:  # S43
    async def main(pool: Any) -> None:
        with pytest.raises(ValueError, match="capacity"):
            await pool.submit(Stream, -1, weight=0.1)
        with pytest.raises(TypeError, match="capacity"):
            await pool.submit(Stream, 1.5, weight=0.1)

    in_pool(main, link)


async def add_then_return(stream: Stream[str]) -> str:
    await stream.add("item")
    return "result"


def test_an_item_is_seen_no_later_than_the_result_of_the_job_that_added_it(link: str) -> None:
    async def main(pool: Any) -> None:
        for _ in range(20):
            stream: Stream[str] = Stream(1)
            assert await pool.submit(add_then_return, stream, weight=0.1) == "result"
            assert stream.take_nonblocking() == "item"

    in_pool(main, link)


def test_sent_home_it_is_the_original_again(link: str) -> None:
    async def echo(things: list[Any]) -> list[Any]:
        return [*things, things[0] is things[-1]]

    async def main(pool: Any) -> None:
        things: list[Any] = [
            Stream(1),
            Mutex(),
            Semaphore(1),
            Condition(),
            Pool(1, object),
            Lazy(object),
            *Promise.create(),
        ]
        things[-1].resolve(None)
        async with Switch() as switch:
            things.append(switch.cancel_handle)
            things.append(things[0])
            back = await pool.submit(echo, things, weight=0.1)
        assert back.pop() is True
        assert all(one is other for one, other in zip(things, back, strict=True))

    in_pool(main, link)


async def make_stream(capacity: int) -> Stream[int]:
    return Stream(capacity)


def test_an_object_made_there_works_here_and_its_home_dies(link: str) -> None:  # S37
    async def main(pool: Any) -> None:
        async with pool._manager.spawn() as domain:
            stream = await domain.call(make_stream, 1)
            await stream.add(5)
            assert len(stream) == 1
            async with Switch() as switch:
                waiting = switch.fork_promise(stream.add, 6)
                while not stream._calls._pending:
                    await fiber.yield_now()
                os.kill(domain.pid, signal.SIGKILL)
                with pytest.raises(DomainDied):
                    await waiting
            with pytest.raises(DomainDied):
                await stream.take()
            with pytest.raises(DomainDied):
                len(stream)

    in_pool(main, link)


async def pass_on(pool: Any, stream: Stream[int]) -> list[int]:
    return await pool.submit(take_until_closed, stream, weight=0.1)


def test_passed_on_from_one_to_another_it_still_talks_to_its_home(link: str) -> None:
    async def main(pool: Any) -> list[int]:
        stream: Stream[int] = Stream(5)
        await add_all(stream, [1, 2])
        stream.close()
        return await pool.submit(pass_on, pool, stream, weight=1.0)

    assert in_pool(main, link, 2) == [1, 2]


# Mutexes


async def locked_section(mutex: Mutex, stream: Stream[str], name: str) -> None:
    async with mutex.rw():
        await stream.add(f"{name} in")
        await stream.add(f"{name} out")


def test_a_mutex_excludes_across_domains(link: str) -> None:  # S44
    async def main(pool: Any) -> None:
        mutex = Mutex()
        stream: Stream[str] = Stream(100)
        async with Switch() as switch:
            for number in range(6):
                pool.submit_fork(switch, locked_section, mutex, stream, f"job {number}", weight=0.1)
            switch.fork(locked_section, mutex, stream, "main")
        seen = [stream.take_nonblocking() for _ in range(14)]
        for entered, left in zip(seen[::2], seen[1::2], strict=True):
            assert entered is not None
            assert entered.replace("in", "out") == (left or "").replace("main", "maout") or left == entered[:-2] + "out"
        assert not mutex.is_locked

    in_pool(main, link, 2)


async def use_lock_badly(mutex: Mutex) -> list[Any]:
    seen: list[Any] = [mutex.try_lock(), mutex.is_locked]
    mutex.unlock()
    seen.append(mutex.is_locked)
    await mutex.lock()
    try:
        await mutex.lock()
    except RuntimeError as error:
        seen.append("wait forever" in str(error))

    async def thief() -> None:
        try:
            mutex.unlock()
        except RuntimeError as error:
            seen.append("holder" in str(error))

    async with Switch() as switch:
        switch.fork(thief)
    seen.append(mutex.is_locked)
    mutex.unlock()
    return seen


def test_ownership_is_checked_there(link: str) -> None:  # S45 S48
    async def main(pool: Any) -> list[Any]:
        mutex = Mutex()
        seen = await pool.submit(use_lock_badly, mutex, weight=0.1)
        assert not mutex.is_locked
        return seen

    assert in_pool(main, link) == [True, True, False, True, True, True]


async def unlock_unlocked(mutex: Mutex) -> None:
    mutex.unlock()


def test_unlocking_there_what_is_not_locked_raises_and_poisons(link: str) -> None:  # S45
    async def main(pool: Any) -> None:
        mutex = Mutex()
        with pytest.raises(RuntimeError):
            await pool.submit(unlock_unlocked, mutex, weight=0.1)
        with pytest.raises(Poisoned):
            await mutex.lock()

    in_pool(main, link)


async def fail_inside(mutex: Mutex, reading: bool) -> None:
    async with mutex.ro() if reading else mutex.rw():
        raise Broken("there")


def test_an_exception_in_a_writing_section_there_poisons_here(link: str) -> None:  # S46 S47
    async def main(pool: Any) -> None:
        mutex = Mutex()
        with pytest.raises(Broken):
            await pool.submit(fail_inside, mutex, True, weight=0.1)
        assert not mutex.is_locked
        assert not mutex.is_poisoned
        with pytest.raises(Broken):
            await pool.submit(fail_inside, mutex, False, weight=0.1)
        with pytest.raises(Poisoned) as caught:
            await mutex.lock()
        assert isinstance(caught.value.__cause__, Broken)

    in_pool(main, link)


async def lock_for(mutex: Mutex, seconds: float) -> bool:
    with move_on_after(seconds) as scope:
        await mutex.lock()
        mutex.unlock()
    return scope.cancelled


def test_a_lock_cancelled_there_holds_nothing_here(link: str) -> None:  # S49
    async def main(pool: Any) -> None:
        mutex = Mutex()
        await mutex.lock()
        assert await pool.submit(lock_for, mutex, 0.01, weight=0.1)
        mutex.unlock()
        assert mutex.try_lock()
        mutex.unlock()

    in_pool(main, link)


async def hold(mutex: Mutex, how: str, held: Resolver[None]) -> None:
    if how == "lock":
        await mutex.lock()
        held.resolve(None)
        await fiber.await_cancel()
    async with mutex.rw() if how == "rw" else mutex.ro():
        held.resolve(None)
        await fiber.await_cancel()


@pytest.mark.parametrize("how", ["lock", "ro", "rw"])
def test_a_holder_that_dies_releases_and_poisons_what_it_was_writing(link: str, how: str) -> None:  # S46
    async def main(pool: Any) -> None:
        mutex = Mutex()
        promise: Promise[None]
        promise, held = Promise.create()
        async with pool._manager.spawn() as domain:
            async with Switch() as switch:
                there = switch.fork_promise(domain.call, hold, mutex, how, held)
                await promise
                waiting = switch.fork_promise(mutex.lock)
                os.kill(domain.pid, signal.SIGKILL)
                with pytest.raises(DomainDied):
                    await there
                if how == "rw":
                    with pytest.raises(Poisoned) as caught:
                        await waiting
                    assert isinstance(caught.value.__cause__, DomainDied)
                else:
                    await waiting

    in_pool(main, link)


async def wait_and_die(mutex: Mutex, condition: Condition | None, waits: Resolver[Condition]) -> None:
    condition = condition or Condition()
    async with mutex.rw():
        waits.resolve(condition)
        await condition.wait(mutex)
        os._exit(3)


@pytest.mark.parametrize("home", ["here", "there"])
def test_a_writer_that_dies_after_it_waited_for_a_condition_poisons(link: str, home: str) -> None:  # S46 S51
    async def main(pool: Any) -> None:
        mutex = Mutex()
        ours = Condition() if home == "here" else None
        promise: Promise[Condition]
        promise, waits = Promise.create()
        async with pool._manager.spawn() as domain, Switch() as switch:
            there = switch.fork_promise(domain.call, wait_and_die, mutex, ours, waits)
            condition = await promise
            async with mutex.ro():
                condition.broadcast()
            with pytest.raises(DomainDied):
                await there
            with pytest.raises(Poisoned):
                await mutex.lock()

    in_pool(main, link)


# Semaphores


async def hold_permit(semaphore: Semaphore, held: Resolver[None]) -> None:
    async with semaphore:
        held.resolve(None)
        await fiber.await_cancel()


def test_permits_of_a_domain_that_dies_return(link: str) -> None:  # S49 S50
    async def main(pool: Any) -> None:
        semaphore = Semaphore(1)
        promise: Promise[None]
        promise, held = Promise.create()
        async with pool._manager.spawn() as domain:
            async with Switch() as switch:
                there = switch.fork_promise(domain.call, hold_permit, semaphore, held)
                await promise
                assert semaphore.value == 0
                waiting = switch.fork_promise(semaphore.acquire)
                os.kill(domain.pid, signal.SIGKILL)
                with pytest.raises(DomainDied):
                    await there
                await waiting
        assert semaphore.value == 0
        semaphore.release()

    in_pool(main, link)


async def use_semaphore(semaphore: Semaphore) -> list[Any]:
    seen: list[Any] = [semaphore.value]
    async with semaphore:
        seen.append(semaphore.value)
        with move_on_after(0.01) as scope:
            await semaphore.acquire()
        seen.append(scope.cancelled)
    seen.append(semaphore.value)
    try:
        semaphore.release()
    except ValueError:
        seen.append("too many")
    return seen


def test_a_semaphore_works_there(link: str) -> None:  # S50
    async def main(pool: Any) -> list[Any]:
        semaphore = Semaphore(1)
        seen = await pool.submit(use_semaphore, semaphore, weight=0.1)
        assert semaphore.value == 1
        return seen

    assert in_pool(main, link) == [1, 0, True, 1, "too many"]


# Conditions


async def wait_there(mutex: Mutex, condition: Condition, stream: Stream[str]) -> str:
    async with mutex.ro():
        await stream.add("waits")
        await condition.wait(mutex)
        await stream.add("woken")
    return "done"


def test_a_condition_and_its_mutex_work_across_domains(link: str) -> None:  # S51
    async def main(pool: Any) -> list[str]:
        mutex, condition = Mutex(), Condition()
        stream: Stream[str] = Stream(10)
        async with Switch() as switch:
            there = pool.submit_fork(switch, wait_there, mutex, condition, stream, weight=0.1)
            seen = [await stream.take()]
            async with mutex.ro():  # it can be locked only once the other waits
                condition.broadcast()
                seen.append(repr(stream.is_empty))
            seen.append(await stream.take())
            seen.append(await there)
            return seen

    assert in_pool(main, link) == ["waits", "True", "woken", "done"]


async def cancelled_wait(mutex: Mutex, condition: Condition) -> list[Any]:
    seen: list[Any] = []
    with move_on_after(0.01) as scope:
        async with mutex.ro():
            try:
                await condition.wait(mutex)
            except Cancelled:
                seen.append(mutex._is_mine())
                raise
    return [*seen, scope.cancelled, mutex.is_locked]


def test_a_wait_cancelled_there_holds_the_mutex_again(link: str) -> None:  # S51
    async def main(pool: Any) -> list[Any]:
        mutex, condition = Mutex(), Condition()
        seen = await pool.submit(cancelled_wait, mutex, condition, weight=0.1)
        assert not len(condition._waiters)
        assert not mutex.is_locked
        return seen

    assert in_pool(main, link) == [True, True, False]


async def broadcast_and_wait(condition: Condition, with_mutex: bool) -> None:
    mutex = Mutex()
    async with mutex.ro():
        condition.broadcast()
        await (condition.wait(mutex) if with_mutex else condition.wait_no_mutex())


@pytest.mark.parametrize("with_mutex", [True, False])
def test_a_broadcast_there_does_not_wake_who_waits_after_it(link: str, with_mutex: bool) -> None:  # S52
    async def main(pool: Any) -> None:
        condition = Condition()
        async with Switch() as switch:
            there = pool.submit_fork(switch, broadcast_and_wait, condition, with_mutex, weight=0.1)
            await condition.wait_no_mutex()  # until it has been woken by the broadcast from there
            while not condition._waiters:
                assert not there.is_resolved
                await fiber.yield_now()
            condition.broadcast()
            await there

    in_pool(main, link)


def broadcast_from_a_plain_job(condition: Condition) -> None:
    condition.broadcast()


def test_a_plain_job_broadcasts(link: str) -> None:  # S52
    async def main(pool: Any) -> None:
        condition = Condition()
        async with Switch() as switch:
            switch.fork(condition.wait_no_mutex)
            await fiber.yield_now()
            await pool.submit(broadcast_from_a_plain_job, condition, weight=0.1)

    in_pool(main, link)


async def loop_there(condition: Condition, stream: Stream[int]) -> list[int]:
    seen: list[int] = []

    async def read() -> list[int] | None:
        while (item := stream.take_nonblocking()) is not None:
            seen.append(item)
        return seen if len(seen) == 3 else None

    return await condition.loop_no_mutex(read)


def test_loop_no_mutex_there_misses_no_broadcast(link: str) -> None:  # S53
    async def main(pool: Any) -> list[int]:
        condition = Condition()
        stream: Stream[int] = Stream(10)
        async with Switch() as switch:
            there = pool.submit_fork(switch, loop_there, condition, stream, weight=0.1)
            for number in range(3):
                await stream.add(number)
                condition.broadcast()
                await asyncio.sleep(0.001 * number)
            return await there

    assert in_pool(main, link) == [0, 1, 2]


# Pools of resources, lazy values, cancel handles


async def use_resource(pool: Pool[str]) -> str:
    async with pool.use() as resource:
        return resource


def test_resources_are_used_from_other_domains(link: str) -> None:  # S54
    async def main(pool: Any) -> None:
        made: list[str] = []

        async def create() -> str:
            made.append(f"resource {len(made)}")
            return made[-1]

        resources = Pool(1, create)
        for _ in range(2):
            assert await pool.submit(use_resource, resources, weight=0.1) == "resource 0"
        async with resources.use() as resource:
            assert resource == "resource 0"

    in_pool(main, link)


async def hold_resource(pool: Pool[str], held: Resolver[None]) -> None:
    async with pool.use():
        held.resolve(None)
        await fiber.await_cancel()


def test_a_resource_comes_back_when_its_user_dies(link: str) -> None:  # S54
    async def main(pool: Any) -> None:
        resources = Pool(1, lambda: "resource")
        promise: Promise[None]
        promise, held = Promise.create()
        async with pool._manager.spawn() as domain:
            async with Switch() as switch:
                there = switch.fork_promise(domain.call, hold_resource, resources, held)
                await promise
                os.kill(domain.pid, signal.SIGKILL)
                with pytest.raises(DomainDied):
                    await there
                async with resources.use() as resource:
                    assert resource == "resource"

    in_pool(main, link)


def test_a_failing_creation_is_raised_there(link: str) -> None:  # S54
    async def main(pool: Any) -> None:
        def create() -> str:
            raise Broken("creation")

        resources = Pool(1, create)
        with pytest.raises(Broken):
            await pool.submit(use_resource, resources, weight=0.1)

    in_pool(main, link)


async def force(lazy: Lazy[int]) -> int:
    return await lazy.force()


def test_a_lazy_value_is_computed_once_at_home(link: str) -> None:  # S56
    async def main(pool: Any) -> tuple[list[int], int]:
        runs = 0

        async def compute() -> int:
            nonlocal runs
            runs += 1
            await asyncio.sleep(0.001)
            return os.getpid()

        lazy = Lazy(compute)
        async with Switch() as switch:
            there = [pool.submit_fork(switch, force, lazy, weight=0.1) for _ in range(4)]
            values = [await promise for promise in there]
        return values, runs

    values, runs = in_pool(main, link, 2)
    assert values == [os.getpid()] * 4
    assert runs == 1


async def cancel_switch(handle: Any) -> None:
    handle.cancel()


def test_a_switch_is_cancelled_from_another_domain_by_its_handle(link: str) -> None:  # S24
    async def main(pool: Any) -> str:
        async with Switch("here") as switch:
            switch.fork(fiber.await_cancel)
            await pool.submit(cancel_switch, switch.cancel_handle, weight=0.1)
        return "ended quietly"

    assert in_pool(main, link) == "ended quietly"
