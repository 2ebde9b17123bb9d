"""What becomes known in the midst of an operation, or has nobody left to say it, leaves no one waiting."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import domains
from domains import (
    Cancelled,
    Condition,
    DomainDied,
    ExecutorPool,
    Lazy,
    Mutex,
    Poisoned,
    Pool,
    Promise,
    Resolver,
    Stream,
    Switch,
    fiber,
    timeout,
)
from domains.scheduler.waiters import WaitQueue

from .remote import in_pool, signal_by, turns, wait_for

kept: list[Any] = []


async def keep(mutex: Mutex) -> Stream[int]:
    stream: Stream[int] = Stream(100)
    kept.extend([mutex, stream])
    return stream


# A mutex at home, of which the last other domain lets go while its fiber settles what it has posted elsewhere


async def let_go(go: str, done: str) -> None:
    """Lets go of the mutex between two moments when its home does nothing else."""
    with open(go):  # noqa: ASYNC230
        del kept[0]
    gc.collect()
    await turns()
    signal_by(done)


@pytest.mark.parametrize("raised", [None, ValueError("in the section")])
def test_a_mutex_that_becomes_a_plain_one_as_it_is_unlocked_is_unlocked(
    link: str, tmp_path: Path, raised: Exception | None
) -> None:
    go, done = str(tmp_path / "go"), str(tmp_path / "done")
    os.mkfifo(go)
    os.mkfifo(done)

    async def main(pool: Any) -> tuple[bool, bool]:
        mutex = Mutex()
        stream = await pool.submit(keep, mutex, weight=0.1)
        await stream.add(0)
        assert stream._places
        async with Switch() as switch:
            await mutex.lock()
            letting_go = pool.submit_fork(switch, let_go, go, done, weight=0.0)
            await turns()
            await stream.add(1)  # for a promised place: it is on its way
            with open(go, "w"), open(done):  # noqa: ASYNC230
                assert type(mutex) is not Mutex
            if raised is None:
                mutex.unlock()
            else:
                mutex._poison(raised)
            assert type(mutex) is Mutex
            await letting_go
        await pool.submit(kept_no_more, weight=0.0)
        return mutex.is_locked, mutex.is_poisoned

    assert in_pool(main, link) == (False, raised is not None)


def kept_no_more() -> None:
    kept.clear()


# A domain that dies before it can say that it has poisoned a mutex


async def fail_and_die(mutex: Mutex) -> None:
    try:
        async with mutex.rw():
            raise ValueError("in the section")
    except ValueError:
        os._exit(3)


async def hold_reference(mutex: Mutex) -> None:
    kept.append(mutex)


@pytest.mark.parametrize("others", [0, 1])
def test_a_mutex_is_poisoned_though_who_poisoned_it_died_before_saying_so(link: str, others: int) -> None:
    async def main(env: domains.Environment) -> None:
        mutex = Mutex()
        async with env.domain_mgr.spawn() as other, env.domain_mgr.spawn() as dying:
            if others:
                await other.call(hold_reference, mutex)
            with pytest.raises(DomainDied):
                await dying.call(fail_and_die, mutex)
            with timeout(20), pytest.raises(Poisoned):
                await mutex.lock()

    domains.run(main, link=link)


# A call served by a fiber that raises Cancelled, though nobody has cancelled it


async def force(lazy: Lazy[Any]) -> Any:
    return await lazy.force()


async def use(pool: Pool[Any]) -> Any:
    async with pool.use() as resource:
        return resource


@pytest.mark.parametrize("what", ["recorded", "lazy", "pool"])
def test_a_call_that_comes_to_cancelled_is_answered(link: str, what: str) -> None:
    async def main(env: domains.Environment) -> None:
        promise: Promise[None]
        promise, resolver = Promise.create()

        async def compute() -> None:
            await promise

        async with env.domain_mgr.spawn() as domain:
            if what == "recorded":
                lazy: Lazy[None] = Lazy(compute, cancel="record")
                async with Switch() as switch:
                    switch.fork(lazy.force)
                    await fiber.yield_now()
                    switch.cancel()
            else:
                resolver.fail(Cancelled())
                lazy = Lazy(compute)
            with timeout(20), pytest.raises(Cancelled):
                if what == "pool":
                    await domain.call(use, Pool(1, compute))
                else:
                    await domain.call(force, lazy)
        resolver.try_resolve(None)

    domains.run(main, link=link)


# Resolvers on their way to domains that are gone


async def make_stream() -> Stream[Any]:
    stream: Stream[Any] = Stream(100)
    kept.append(stream)
    return stream


def test_the_promise_of_a_resolver_that_cannot_be_delivered_fails(link: str) -> None:
    async def main(env: domains.Environment) -> None:
        async with env.domain_mgr.spawn() as domain:
            stream: Any = await domain.call(make_stream)
            await stream.add(0)
            assert stream._places
            promise: Promise[None]
            promise, resolver = Promise.create()
            way = stream._references.link_to(stream.home)
            os.kill(domain.pid, signal.SIGKILL)
            while way.is_open:  # and how its process ended is not known yet, as a rule
                await fiber.yield_now()
            try:
                await stream.add(resolver)
            except DomainDied:
                return
            del resolver
            with timeout(20), pytest.raises(DomainDied):
                await promise

    domains.run(main, link=link)


async def have_jobs_and_die(manager: Any, handle: Resolver[Any]) -> None:
    async with ExecutorPool(manager, domain_count=1) as pool, Switch() as switch:
        pool.submit_fork(switch, time.sleep, 3600, weight=1.0)
        submitted: Promise[None]
        submitted, submit = Promise.create()
        handle.resolve((pool, submit))
        await submitted
        os.kill(os.getpid(), signal.SIGKILL)


async def submit_a_resolver(pool: ExecutorPool, submitted: Resolver[None]) -> str:
    promise: Promise[None]
    promise, resolver = Promise.create()
    async with Switch() as switch:
        job = pool.submit_fork(switch, Resolver.resolve, resolver, None, weight=1.0)
        del resolver
        submitted.resolve(None)
        with pytest.raises(DomainDied):
            await job
        with timeout(20):
            try:
                await promise
            except DomainDied as error:
                return type(error).__name__
    return "resolved"


def test_the_promise_of_a_resolver_in_a_job_that_was_queued_in_a_dead_domain_fails(link: str) -> None:
    async def main(env: domains.Environment) -> str:
        async with env.domain_mgr.spawn() as home, env.domain_mgr.spawn() as submitter, Switch() as switch:
            pool: Promise[Any]
            pool, handle = Promise.create()
            dying = switch.fork_promise(home.call, have_jobs_and_die, env.domain_mgr, handle)
            outcome = await submitter.call(submit_a_resolver, *await pool)
            with pytest.raises(DomainDied):
                await dying
            return outcome

    assert domains.run(main, link=link) == "DomainDied"


# A pool's handle that nobody has any more but its jobs


async def submit_only(stream: Stream[ExecutorPool]) -> int:
    async with Switch() as switch:

        async def submit() -> Promise[int]:
            return (await stream.take()).submit_fork(switch, collect_and_return, 7, weight=0.5)

        promise = await submit()
        gc.collect()
        with timeout(20):
            return await promise


def collect_and_return(value: int) -> int:
    return value


async def map_only(stream: Stream[ExecutorPool]) -> int:
    total = 0
    with timeout(20):
        async for value in (await stream.take()).map(collect_and_return, range(5), weight=0.5):
            gc.collect()
            total += value
    return total


@pytest.mark.parametrize(("submit", "expected"), [(submit_only, 7), (map_only, 10)])
def test_jobs_end_though_nobody_has_the_handle_of_their_pool(
    link: str, submit: Callable[..., Any], expected: int
) -> None:
    async def main(env: domains.Environment) -> int:
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, env.domain_mgr.spawn() as domain:
            stream: Stream[ExecutorPool] = Stream(1)
            await stream.add(pool)
            outcome: int = await domain.call(submit, stream)
            return outcome

    assert domains.run(main, link=link) == expected


# A thread that broadcasts as a wait is withdrawn


class Interrupted(WaitQueue[Any]):
    """The queue of a condition: another thread has taken all out, and the loop withdraws one before it wakes them."""

    __slots__ = ("go", "taken", "thread")

    def _take_all(self) -> Any:
        everybody = super()._take_all()
        if threading.current_thread() is self.thread:
            self.taken.set()
            self.go.wait()
        return everybody

    def withdraw(self, waiter: Any) -> None:
        super().withdraw(waiter)
        if self.taken.is_set() and not self.go.is_set():
            self.go.set()
            self.thread.join()


async def wait_until_cancelled(condition: Condition, waits: Resolver[None], cancel: Promise[None]) -> int:
    async with Switch() as switch:
        switch.fork_daemon(condition.wait_no_mutex)
        await fiber.yield_now()
        waits.resolve(None)
        await cancel
    return os.getpid()


def test_a_broadcast_by_a_thread_while_a_wait_is_withdrawn_ends_no_domain(link: str) -> None:
    async def main(env: domains.Environment) -> bool:
        condition = Condition()
        queue = condition._waiters = Interrupted()
        queue.taken, queue.go = threading.Event(), threading.Event()
        queue.thread = threading.Thread(target=condition.broadcast)
        async with env.domain_mgr.spawn() as domain, Switch() as switch:
            waits: Promise[None]
            cancel: Promise[None]
            waits, begun = Promise.create()
            cancel, end = Promise.create()
            waiting = switch.fork_promise(domain.call, wait_until_cancelled, condition, begun, cancel)
            await waits
            while not queue:
                await fiber.yield_now()
            queue.thread.start()
            queue.taken.wait()
            end.resolve(None)
            return await waiting == domain.pid

    assert domains.run(main, link=link)


# A job that arrives while a fiber waits without an `await`


async def ask_and_tell(stream: Stream[int], go: str) -> None:
    await turns()
    told.clear()
    signal_by(go)
    len(stream)
    told.append("the fiber's turn is over")


told: list[str] = []


def tell_of_job() -> list[str]:
    told.append("the job")
    return told


def test_no_job_runs_in_the_midst_of_a_fibers_turn(link: str, tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    os.mkfifo(go)

    async def main(env: domains.Environment) -> list[str]:
        async with (
            env.domain_mgr.spawn() as home,
            ExecutorPool(env.domain_mgr, domain_count=1) as pool,
            Switch() as switch,
        ):
            stream = await home.call(make_stream)
            asking = pool.submit_fork(switch, ask_and_tell, stream, go, weight=0.1)
            os.kill(home.pid, signal.SIGSTOP)
            await domains.run_in_thread(wait_for, go)  # the fiber is about to ask
            job = pool.submit_fork(switch, tell_of_job, weight=0.1)
            await turns()
            os.kill(home.pid, signal.SIGCONT)  # the job is on its way before the answer
            await asking
            return await job

    assert domains.run(main, link=link) == ["the fiber's turn is over", "the job"]
