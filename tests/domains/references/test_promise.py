"""Promises and resolvers that travel between domains, over both kinds of link."""

import asyncio
import gc
import operator
import os
import signal
import threading
from typing import Any

import pytest

import domains
from domains import DomainDied, Promise, Resolver, Switch

from .remote import in_pool


def resolve(resolver: Resolver[Any], value: Any) -> None:
    resolver.resolve(value)


async def get(promise: Promise[Any]) -> Any:
    return await promise


def test_a_resolver_is_resolved_there_and_its_promise_awaited_here(link):
    async def main(pool):
        promise, resolver = Promise.create("answer")
        await pool.submit(resolve, resolver, 42, weight=1.0)
        return await promise

    assert in_pool(main, link) == 42


def test_a_promise_is_resolved_here_and_awaited_there(link):
    async def main(pool):
        promise, resolver = Promise.create("answer")
        async with Switch() as sw:
            there = pool.submit_fork(sw, get, promise, weight=0.1)
            await pool.submit(os.getpid, weight=0.0)
            resolver.resolve(42)
            return await there

    assert in_pool(main, link) == 42


def test_a_promise_that_was_resolved_before_is_awaited_there(link):  # S33
    async def main(pool):
        return await pool.submit(get, Promise.resolved({"a": 1}), weight=0.1)

    assert in_pool(main, link) == {"a": 1}


@pytest.mark.parametrize("count", [1, 2])
def test_two_jobs_share_a_promise(link, count):
    async def main(pool):
        promise, resolver = Promise.create("shared")
        async with Switch() as sw:
            waiting = [pool.submit_fork(sw, get, promise, weight=0.1) for _ in range(4)]
            pool.submit_fork(sw, resolve, resolver, "done", weight=0.1)
            return [await each for each in waiting]

    assert in_pool(main, link, count) == ["done"] * 4


def test_many_waiters_in_one_domain_get_the_same_object(link):  # S34
    async def wait_twice(promise):
        first, second = await domains.fiber.pair(lambda: get(promise), lambda: get(promise))
        return first is second, first

    async def main(pool):
        promise, resolver = Promise.create()
        async with Switch() as sw:
            there = pool.submit_fork(sw, wait_twice, promise, weight=0.1)
            resolver.resolve([1])
            return await there

    assert in_pool(main, link) == (True, [1])


def test_a_failure_arrives_as_itself_with_its_traceback(link):  # S36
    async def fail(resolver):
        try:
            raise KeyError("missing")
        except KeyError as error:
            resolver.fail(error)

    async def main(pool):
        promise, resolver = Promise.create("fails")
        await pool.submit(fail, resolver, weight=0.1)
        with pytest.raises(KeyError) as caught:
            await promise
        return caught.value

    assert "in fail" in in_pool(main, link).__notes__[0]


def test_a_second_resolve_there_raises(link):  # S34
    def twice(resolver):
        resolver.resolve(1)
        assert not resolver.try_resolve(2)
        try:
            resolver.resolve(3)
        except domains.AlreadyResolved:
            return "raised"

    async def main(pool):
        promise, resolver = Promise.create()
        return await pool.submit(twice, resolver, weight=1.0), await promise

    assert in_pool(main, link) == ("raised", 1)


def test_what_comes_too_late_from_another_domain_is_logged(link, caplog):  # S34
    async def main(pool):
        promise, resolver = Promise.create("contended")
        resolver.resolve("here")
        await pool.submit(resolve, resolver, "there", weight=1.0)
        await pool.submit(os.getpid, weight=1.0)
        return await promise

    assert in_pool(main, link) == "here"
    assert "contended" in caplog.text


def test_a_promise_sent_home_is_the_original_object(link):
    async def main(pool):
        promise, resolver = Promise.create()
        back, again = await pool.submit(same, (promise, resolver), weight=1.0)
        return back is promise, again is resolver

    assert in_pool(main, link) == (True, True)


def same(x):
    return x


def test_one_reference_stands_for_one_object_in_a_domain(link):
    def identical(first, others):
        return first is others[0] and isinstance(first, Promise)

    async def main(pool):
        promise, _ = Promise.create()
        return await pool.submit(identical, promise, [promise], weight=1.0)

    assert in_pool(main, link)


def test_a_promise_made_in_a_job_is_resolved_by_the_parent(link):
    async def main(pool):
        resolver = await pool.submit(make_and_keep, weight=0.1)
        async with Switch() as sw:
            there = pool.submit_fork(sw, await_kept, weight=0.1)
            resolver.resolve("from the parent")
            return await there

    assert in_pool(main, link) == "from the parent"


kept: list[Any] = []


async def make_and_keep():
    promise, resolver = Promise.create("from the job")
    kept.append(promise)
    return resolver


async def await_kept():
    return await kept.pop()


def test_a_promise_inside_the_value_of_a_promise(link):
    async def main(pool):
        outer, resolve_outer = Promise.create("outer")
        inner, resolve_inner = Promise.create("inner")
        async with Switch() as sw:
            there = pool.submit_fork(sw, get_twice, outer, weight=0.1)
            resolve_outer.resolve({"inner": inner})
            resolve_inner.resolve("innermost")
            return await there

    assert in_pool(main, link) == "innermost"


async def get_twice(outer):
    return await (await outer)["inner"]


def test_two_domains_talk_through_promises_that_neither_parent_made(link):
    async def ask(resolver):
        """Hands out a promise's resolver, made here, and waits for the other domain to use it."""
        mine, resolve_mine = Promise.create("made by a sibling")
        resolver.resolve(resolve_mine)
        return os.getpid(), await mine

    async def answer(promise):
        resolver = await promise
        resolver.resolve(os.getpid())

    async def main(pool):
        meeting, introduce = Promise.create("meeting")
        async with Switch() as sw:
            asked = pool.submit_fork(sw, ask, introduce, weight=1.0)
            await pool.submit(answer, meeting, weight=1.0)
            return await asked

    here, there = in_pool(main, link, 2)
    assert here != there


def test_cancelling_one_waiter_there_leaves_the_promise_alone(link):  # S35
    async def impatient(promise):
        with domains.move_on_after(0) as scope:
            await promise
        return scope.cancelled

    async def main(pool):
        promise, resolver = Promise.create()
        first = await pool.submit(impatient, promise, weight=0.1)
        resolver.resolve(1)
        return first, await pool.submit(get, promise, weight=0.1)

    assert in_pool(main, link) == (True, 1)


async def await_cancelled_failure(promise):
    try:
        await promise
    except domains.Cancelled:
        return domains.fiber.is_cancelled()


def test_a_promise_that_failed_with_cancelled_raises_it_there_though_nobody_is_cancelled(link):  # S38
    async def main(pool):
        promise, resolver = Promise.create()
        resolver.fail(domains.Cancelled())
        assert await pool.submit(await_cancelled_failure, promise, weight=0.1) is False

    in_pool(main, link)


def kill_yourself(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_death_of_the_only_domain_with_the_resolver_fails_the_promise(link):  # S37
    async def hold(resolver):
        kept.append(resolver)

    async def main(pool):
        promise, resolver = Promise.create("orphan")
        await pool.submit(hold, resolver, weight=0.1)
        with pytest.raises(DomainDied):
            await pool.submit(kill_yourself, weight=1.0)
        with pytest.raises(DomainDied) as caught:
            await promise
        return caught.value

    assert in_pool(main, link).signal == signal.SIGKILL


def test_the_death_of_a_promises_home_fails_whoever_waits_for_it(link):  # S37
    async def make():
        promise, _ = Promise.create("made by one who dies")
        kept.append(promise)
        return os.getpid(), promise

    async def main(pool):
        home, promise = await pool.submit(make, weight=1.0)
        async with Switch() as sw:
            others = [pool.submit_fork(sw, wait_elsewhere, home, promise, weight=0.4) for _ in range(6)]
            for _ in range(20):
                await pool.submit(os.getpid, weight=0.0)
            os.kill(home, signal.SIGKILL)
            with pytest.raises(DomainDied):
                await promise
            return [await other for other in others if await survives(other)]

    assert set(in_pool(main, link, 2)) <= {"died"}


async def survives(promise):
    try:
        await promise
    except DomainDied:
        return False
    return True


async def wait_elsewhere(home, promise):
    if home == os.getpid():
        await asyncio.Event().wait()
    try:
        await promise
    except DomainDied:
        return "died"


def test_an_unresolved_promise_stays_usable_when_a_domain_that_waits_dies(link):
    async def begin_to_wait(begun, promise):
        begun.resolve(None)
        await promise

    async def main(pool):
        promise, resolver = Promise.create()
        begun, begin = Promise.create()
        async with Switch() as sw:
            waiting = pool.submit_fork(sw, begin_to_wait, begin, promise, weight=0.1)
            await begun
            with pytest.raises(DomainDied):
                await pool.submit(kill_yourself, weight=0.0)
            with pytest.raises(DomainDied):
                await waiting
        resolver.resolve(1)
        return await promise

    assert in_pool(main, link) == 1


def test_a_value_that_cannot_travel_is_refused_where_it_is_resolved(link):
    def resolve_badly(resolver):
        try:
            resolver.resolve(threading.Lock())
        except domains.NotPicklable as error:
            resolver.resolve(str(error))

    async def main(pool):
        promise, resolver = Promise.create("picky")
        await pool.submit(resolve_badly, resolver, weight=1.0)
        return await promise

    text = in_pool(main, link)
    assert "picky" in text
    assert "lock" in text


def test_a_plain_job_may_resolve_long_before_it_ends(link, tmp_path):
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)

    def resolve_and_go_on(resolver):
        resolver.resolve("early")
        with open(fifo) as file:
            return file.read()

    async def main(pool):
        promise, resolver = Promise.create()
        async with Switch() as sw:
            job = pool.submit_fork(sw, resolve_and_go_on, resolver, weight=1.0)
            early = await promise
            assert not job.is_resolved
            await domains.run_in_thread(write, fifo)
            return early, await job

    assert in_pool(main, link) == ("early", "late")


def write(path):
    with open(path, "w") as file:
        file.write("late")


def test_a_thread_in_another_domain_may_resolve(link):
    async def from_a_thread(resolver):
        await domains.run_in_thread(resolver.resolve, "from a thread")

    async def main(pool):
        promise, resolver = Promise.create()
        await pool.submit(from_a_thread, resolver, weight=0.1)
        return await promise

    assert in_pool(main, link) == "from a thread"


class OpenedAtOnce:
    """Its pickle is opened by two threads: the first has begun before the second, and ends before it too."""

    turns = (threading.Event(), threading.Event(), threading.Event())

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return OpenedAtOnce.open, (self.number,)

    @staticmethod
    def open(number):
        turns = OpenedAtOnce.turns
        if number == 0:
            turns[0].set()
            turns[1].wait()
        else:
            turns[1].set()
            turns[2].wait()


def test_programs_in_two_threads_open_references_at_once(link):
    def give(number):
        return OpenedAtOnce(number), Promise.create()[0]

    def run(number):
        async def main(env):
            async with env.domain_mgr.spawn() as domain:
                if number == 1:
                    OpenedAtOnce.turns[0].wait()
                try:
                    _, promise = await domain.call(give, number)
                finally:
                    OpenedAtOnce.turns[2].set()
                homes[number] = promise._references is env.domain_mgr.references

        domains.run(main, link=link)

    homes = {}
    for turn in OpenedAtOnce.turns:
        turn.clear()
    thread = threading.Thread(target=run, args=(1,))
    thread.start()
    run(0)
    thread.join()
    assert homes == {0: True, 1: True}


class PickledBy:
    """Arrives as whether the thread that made it has pickled it."""

    def __init__(self) -> None:
        self.maker = threading.get_ident()

    def __reduce__(self):
        return operator.eq, (self.maker, threading.get_ident())


async def resolve_from_a_thread(resolver: Resolver[Any], make: Any) -> None:
    await domains.run_in_thread(resolver.resolve, make())


async def resolved_there_from_a_thread(pool, make):
    promise, resolver = Promise.create("threaded")
    await pool.submit(resolve_from_a_thread, resolver, make, weight=0.1)
    return await promise


async def resolved_here_from_a_thread(pool, make):
    async def begin_to_get(begun, promise):
        begun.resolve(None)
        return await promise

    promise, resolver = Promise.create("threaded")
    begun, begin = Promise.create()
    async with Switch() as sw:
        waiting = pool.submit_fork(sw, begin_to_get, begin, promise, weight=0.1)
        await begun
        await pool.submit(os.getpid, weight=0.0)  # what the other job has said before has come with that
        await resolve_from_a_thread(resolver, make)
        return await waiting


from_a_thread = pytest.mark.parametrize("resolved", [resolved_here_from_a_thread, resolved_there_from_a_thread])


@from_a_thread
def test_what_a_thread_resolves_is_pickled_by_the_loops_thread(link, resolved):
    """What is on its way is counted there: two threads that pickle at once would count each other's."""

    async def main(pool):
        return await resolved(pool, PickledBy)

    assert in_pool(main, link) is True


@from_a_thread
def test_a_value_from_a_thread_that_cannot_travel_fails_the_promise(link, resolved):
    async def main(pool):
        with pytest.raises(domains.NotPicklable) as caught:
            await resolved(pool, threading.Lock)
        return str(caught.value)

    text = in_pool(main, link)
    assert "threaded" in text
    assert "lock" in text


class Cancels:
    """Raises what comes from outside elsewhere, as it is pickled."""

    def __reduce__(self):
        raise domains.Cancelled


def test_a_value_whose_pickling_is_cancelled_fails_the_promise_for_others_alone(link):
    async def outcome(begun, promise):
        begun.resolve(None)
        try:
            return await promise
        except domains.Cancelled as error:
            return type(error).__name__

    async def main(pool):
        promise, resolver = Promise.create()
        begun, begin = Promise.create()
        async with Switch() as sw:
            there = pool.submit_fork(sw, outcome, begin, promise, weight=0.1)
            await begun
            await pool.submit(os.getpid, weight=0.0)
            here = sw.fork_promise(get, promise)  # behind the other domain
            await domains.fiber.yield_now()
            resolver.resolve(Cancels())
            return await there, type(await here)

    assert in_pool(main, link) == ("Cancelled", Cancels)


def test_a_value_from_a_thread_whose_pickling_is_cancelled_fails_the_promise(link):
    async def main(pool):
        with pytest.raises(domains.Cancelled):
            await resolved_there_from_a_thread(pool, Cancels)
        return True

    assert in_pool(main, link)


def test_a_resolver_elsewhere_fails_with_exceptions_only(link):
    def fail_with_text(resolver):
        try:
            resolver.fail("text")
        except TypeError as error:
            resolver.resolve(str(error))

    async def main(pool):
        promise, resolver = Promise.create()
        await pool.submit(fail_with_text, resolver, weight=1.0)
        return await promise

    assert in_pool(main, link) == "a promise fails with an exception, not with 'text'"


def test_ten_thousand_promises_that_pass_leave_nothing(link):
    async def main(pool):
        for _ in range(20):
            async with Switch() as sw:
                jobs = []
                for _ in range(500):
                    promise, resolver = Promise.create()
                    pool.submit_fork(sw, resolve, resolver, 1, weight=1.0)
                    jobs.append(promise)
                for promise in jobs:
                    assert await promise == 1
        return await pool.submit(count_imports, weight=1.0)

    assert in_pool(main, link) <= 1000


def count_imports():
    import domains.references.registry as registry

    found = [each for each in gc.get_objects() if isinstance(each, registry.References)]
    return sum(len(each._imports) for each in found)


def test_an_ordinary_pickle_of_a_promise_says_what_to_do():
    import pickle

    with pytest.raises(TypeError, match="between domains"):
        pickle.dumps(Promise.resolved(1))
    with pytest.raises(TypeError, match="between domains"):
        pickle.dumps(Promise.create()[1])
