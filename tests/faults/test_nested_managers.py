"""A domain manager that is handed to a domain is that domain's own: what it starts lives below it, and dies with it."""

import asyncio
import gc
import os
import pickle
import signal

import pytest

import domains
from domains import DomainDied, ExecutorPool, Promise, Stream, Supervisor, Switch, domain_state, fiber
from domains.references.registry import References

from .program import Program, wait_until_gone


async def _pid():
    return os.getpid()


def _parent_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


async def _wait():
    await fiber.await_cancel()


async def _tell_and_wait(telling):
    telling.resolve(os.getpid())
    await fiber.await_cancel()


def _tell_and_spin(telling):
    telling.resolve(os.getpid())
    while True:
        pass


# What it does


def test_an_async_job_starts_domains_below_its_own(link):
    async def job(domain_mgr):
        async with domain_mgr.spawn() as domain, ExecutorPool(domain_mgr, domain_count=2) as pool:
            squares = [y async for y in pool.map(abs, range(-5, 0), weight=0.5)]
            info = await domain.call(domains.current)
            launcher = _parent_of(domain.pid)
            return squares, info.name, domains.current().name, launcher, _parent_of(launcher), os.getpid()

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            squares, name, above, launcher, its_parent, middle = await pool.submit(job, env.domain_mgr, weight=1.0)
            assert squares == [5, 4, 3, 2, 1]
            assert name.startswith(above + ".")
            assert its_parent == middle
            assert launcher != env.domain_mgr._provider._connection.process.pid

    domains.run(main, link=link)


def test_it_is_the_same_one_each_time_and_the_programs_own_at_home(link):
    async def first(domain_mgr):
        domain_state.manager = domain_mgr
        return domain_mgr

    async def second(domain_mgr):
        return domain_mgr is domain_state.manager

    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            assert await domain.call(first, env.domain_mgr) is env.domain_mgr
            assert await domain.call(second, env.domain_mgr)

    domains.run(main, link=link)


def test_it_knows_how_many_domains_a_pool_has_that_does_not_say():
    async def job(domain_mgr):
        async with ExecutorPool(domain_mgr) as pool:
            return len(pool.stats().domains)

    async def main(env):
        return await env.domain_mgr.run(job, env.domain_mgr)

    assert domains.run(main, domains=3) == 3


def test_it_does_not_travel_by_other_ways():
    async def main(env):
        return pickle.dumps(env.domain_mgr)

    data = domains.run(main)
    with pytest.raises(RuntimeError, match="can only be handed to a domain"):
        pickle.loads(data)


def test_domains_four_levels_deep_answer(link):
    async def descend(domain_mgr, depth):
        if depth == 0:
            return [domains.current().name]
        return [domains.current().name, *await domain_mgr.run(descend, domain_mgr, depth - 1)]

    async def main(env):
        return await env.domain_mgr.run(descend, env.domain_mgr, 3)

    assert domains.run(main, link=link) == ["domain-1", "domain-1.1", "domain-1.1.1", "domain-1.1.1.1"]


# What several levels know


async def _make_promise():
    promise, domain_state.resolver = Promise.create()
    return promise


async def _resolve(value):
    domain_state.resolver.resolve(value)


async def _await_it(promise, started=None):
    if started is not None:
        started.resolve(None)
    return await promise


def test_an_object_of_the_lowest_level_is_known_above_it_and_beside(link):
    async def middle(domain_mgr, known, go):
        async with domain_mgr.spawn() as lowest:
            known.resolve(await lowest.call(_make_promise))
            await go
            await lowest.call(_resolve, "from below")
            await fiber.await_cancel()

    async def main(env):
        known, tell = Promise.create()
        go, let_go = Promise.create()
        async with env.domain_mgr.spawn() as one, env.domain_mgr.spawn() as beside, Switch() as sw:
            sw.fork(one.call, middle, env.domain_mgr, tell, go)
            promise = await known
            started, start = Promise.create()
            awaited = sw.fork_promise(beside.call, _await_it, promise, start)
            await started
            let_go.resolve(None)
            assert await promise == "from below"
            assert await awaited == "from below"
            sw.cancel()

    domains.run(main, link=link)


def test_an_object_of_the_top_is_used_by_the_lowest_level_and_one_beside(link):
    async def add(stream, count):
        for number in range(count):
            await stream.add(number)
        return domains.current().name

    async def middle(domain_mgr, stream):
        return await domain_mgr.run(add, stream, 50)

    async def main(env):
        stream = Stream(3)
        async with Switch() as sw:
            below = sw.fork_promise(env.domain_mgr.run, middle, env.domain_mgr, stream)
            beside = sw.fork_promise(env.domain_mgr.run, add, stream, 50)
            assert sorted([await stream.take() for _ in range(100)]) == sorted([*range(50)] * 2)
            assert (await below).startswith("domain-")
            await beside

    domains.run(main, link=link)


def test_one_below_and_one_beside_its_parent_share_a_mutex(link):
    async def count(mutex, many):
        for _ in range(many):
            async with mutex.rw():
                await asyncio.sleep(0)
        return many

    async def make():
        domain_state.mutex = domains.Mutex()
        return domain_state.mutex

    async def middle(domain_mgr, mutex):
        return await domain_mgr.run(count, mutex, 30)

    async def main(env):
        async with env.domain_mgr.spawn() as home, Switch() as sw:
            mutex = await home.call(make)
            below = sw.fork_promise(env.domain_mgr.run, middle, env.domain_mgr, mutex)
            beside = sw.fork_promise(env.domain_mgr.run, count, mutex, 30)
            assert await below + await beside == 60

    domains.run(main, link=link)


@pytest.mark.parametrize("victim", ["lowest", "middle"])
def test_who_waits_above_or_beside_for_what_died_below_hears_of_that(link, victim):
    async def middle(domain_mgr, known):
        async with domain_mgr.spawn() as lowest:
            promise = await lowest.call(_make_promise)
            known.resolve((promise, lowest.pid))
            await fiber.await_cancel()

    async def main(env):
        known, tell = Promise.create()
        async with env.domain_mgr.spawn() as one, env.domain_mgr.spawn() as beside, Switch() as sw:
            running = sw.fork_promise(one.call, middle, env.domain_mgr, tell)
            promise, lowest_pid = await known
            started, start = Promise.create()
            awaited = sw.fork_promise(beside.call, _await_it, promise, start)
            here = sw.fork_promise(_await_it, promise)
            await started
            os.kill(lowest_pid if victim == "lowest" else one.pid, signal.SIGKILL)
            with pytest.raises(DomainDied):
                await awaited
            with pytest.raises(DomainDied):
                await here
            if victim == "middle":
                with pytest.raises(DomainDied):
                    await running
            assert await beside.call(_pid) == beside.pid
            sw.cancel()

    domains.run(main, link=link)


def test_who_waits_below_for_what_died_beside_hears_of_that(link):
    async def middle(domain_mgr, promise, started):
        return await domain_mgr.run(_await_it, promise, started)

    async def main(env):
        async with env.domain_mgr.spawn() as home, Switch() as sw:
            promise = await home.call(_make_promise)
            started, start = Promise.create()
            waiting = sw.fork_promise(env.domain_mgr.run, middle, env.domain_mgr, promise, start)
            await started
            os.kill(home.pid, signal.SIGKILL)
            with pytest.raises(DomainDied):
                await waiting

    domains.run(main, link=link)


# How it ends

BELOW = [_tell_and_wait, _tell_and_spin]


async def _start_below(domain_mgr, f, telling):
    await domain_mgr.run(f, telling)


@pytest.mark.parametrize("below", BELOW)
def test_a_cancelled_job_takes_its_domains_with_it_before_it_ends(link, below):
    async def main(env):
        told, telling = Promise.create()
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            async with Switch() as sw:
                pool.submit_fork(sw, _start_below, env.domain_mgr, below, telling, weight=1.0)
                pid = await told
                sw.cancel()
            assert not wait_until_gone([pid], 0.0)
            assert await pool.submit(_pid, weight=1.0)

    domains.run(main, link=link)


@pytest.mark.parametrize("below", BELOW)
def test_a_domain_in_the_middle_that_is_killed_takes_its_own_with_it(link, below):
    async def main(env):
        told, telling = Promise.create()
        async with env.domain_mgr.spawn() as other, env.domain_mgr.spawn() as middle, Switch() as sw:
            running = sw.fork_promise(middle.call, _start_below, env.domain_mgr, below, telling)
            pid = await told
            os.kill(middle.pid, signal.SIGKILL)
            with pytest.raises(DomainDied):
                await running
            assert not wait_until_gone([pid], 1.0)
            assert await other.call(_pid) == other.pid

    domains.run(main, link=link)


def test_a_domain_that_ends_takes_along_what_nobody_waits_for_any_more(link):
    async def leave_one_open(domain_mgr):
        domain = await domain_mgr.spawn().__aenter__()
        return await domain.call(_pid)

    async def main(env):
        pid = await env.domain_mgr.run(leave_one_open, env.domain_mgr)
        assert not wait_until_gone([pid], 0.0)

    domains.run(main, link=link)


TREE = """
async def grow(domain_mgr, depth):
    say(os.getpid())
    if depth == 0:
        END
    async with Switch() as sw:
        for _ in range(2):
            sw.fork(domain_mgr.run, grow, domain_mgr, depth - 1)

async def main(env):
    await env.domain_mgr.run(grow, env.domain_mgr, 2)

domains.run(main, link=LINK)
"""


@pytest.mark.parametrize("end", ["await fiber.await_cancel()", "spin()"], ids=["waiting", "spinning"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_the_tree_of_managers_dies_from_its_root(link, tmp_path, number, end):
    with Program(TREE.replace("LINK", repr(link)).replace("END", end), tmp_path, link) as program:
        told = {program.hear() for _ in range(1 + 2 + 4)}
        assert told < program.processes()
        program.send_signal(number)
        status = program.wait()
        assert status == {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 143}.get(number, -number)
        program.check_nothing_is_left()


# What is left of those that have ended


def _known_of_others(references):
    return len(references._routes) + len(references._unreachable) + len(references._seeking)


async def _how_much_is_known():
    gc.collect()
    await asyncio.sleep(0)
    (references,) = [each for each in gc.get_objects() if isinstance(each, References)]
    return _known_of_others(references)


async def _below(domain_mgr, promise):
    return await domain_mgr.run(_await_it, promise)


def test_a_domain_that_lives_long_keeps_nothing_of_those_that_have_ended(link):
    async def main(env):
        async with env.domain_mgr.spawn() as old, env.domain_mgr.spawn() as home:
            await home.call(_pid)  # it has said who it is
            before = await old.call(_how_much_is_known), _known_of_others(env.domain_mgr.references)
            promise = await home.call(_make_promise)
            await home.call(_resolve, "known to all")
            for _ in range(3):
                assert await env.domain_mgr.run(_below, env.domain_mgr, promise) == "known to all"
            async with env.domain_mgr.spawn() as short:
                theirs = await short.call(_make_promise)
                async with Switch() as sw:
                    waited = sw.fork_promise(old.call, _await_it, theirs)
                    await old.call(_pid)
                    os.kill(short.pid, signal.SIGKILL)
                    with pytest.raises(DomainDied):
                        await waited
            del theirs, waited, sw
            while (await old.call(_how_much_is_known), _known_of_others(env.domain_mgr.references)) != before:
                gc.collect()

    domains.run(main, link=link)


async def _serve(pids):
    await pids.add(os.getpid())
    await fiber.await_cancel()


async def _supervise(domain_mgr, pids):
    async with Supervisor(domain_mgr, heartbeat_seconds=5.0) as supervisor:
        supervisor.start(_serve, pids)


def test_a_service_below_a_domain_is_restarted_there_and_ends_with_it(link):
    async def main(env):
        pids = Stream(10)
        async with env.domain_mgr.spawn() as middle, Switch() as sw:
            supervising = sw.fork_promise(middle.call, _supervise, env.domain_mgr, pids)
            first = await pids.take()
            os.kill(first, signal.SIGKILL)
            second = await pids.take()
            assert _parent_of(_parent_of(second)) == middle.pid
            os.kill(middle.pid, signal.SIGKILL)
            with pytest.raises(DomainDied):
                await supervising
            assert not wait_until_gone([second], 1.0)

    domains.run(main, link=link)
