"""The life of a pool: initializers, recycling, growing, draining, closing."""
# ruff: noqa: ASYNC110, ASYNC240 - jobs tell the tests by files where they are

import asyncio
import contextvars
import os
import resource
import signal
import threading
import time
from functools import partial

import pytest

import domains
from domains import Closed, DomainUnavailable, ExecutorPool, Switch
from domains.cancelling import Cancelling
from domains.errors import copy_of
from domains.memory import MemoryWatch
from domains.pool.members import Members


def run(main, link="socketpair"):
    return domains.run(main, link=link)


_resource: list[object] = []


def open_resource(name):
    _resource.append(name)


async def open_resource_slowly(name):
    await asyncio.sleep(0.05)
    _resource.append(name)


def read_resource():
    return os.getpid(), list(_resource)


@pytest.mark.parametrize("initializer", [open_resource, open_resource_slowly])
def test_each_domain_is_initialized_once_before_its_first_job(link, initializer):
    async def main(env):
        async with (
            ExecutorPool(env.domain_mgr, domain_count=2, initializer=initializer, initargs=("database",)) as pool,
            Switch() as sw,
        ):
            promises = [pool.submit_fork(sw, read_resource, weight=1.0) for _ in range(50)]
            return [await promise for promise in promises]

    results = run(main, link)
    assert {tuple(resource) for _, resource in results} == {("database",)}


def open_what_cannot_travel():
    _resource.append("opened")
    return threading.Lock()


async def open_slowly_what_cannot_travel():
    return open_what_cannot_travel()


def open_later_what_cannot_travel():
    return open_slowly_what_cannot_travel()


@pytest.mark.parametrize(
    "initializer", [open_what_cannot_travel, open_slowly_what_cannot_travel, open_later_what_cannot_travel]
)
def test_what_an_initializer_returns_need_not_travel(initializer):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, initializer=initializer) as pool:
            await pool.ready()
            return (await pool.submit(read_resource, weight=1.0))[1]

    assert run(main) == ["opened"]


def test_a_function_that_was_not_made_for_it_may_be_an_initializer():
    ignored = (signal.SIGINT, signal.SIG_IGN)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, initializer=signal.signal, initargs=ignored) as pool:
            return await pool.submit(signal.getsignal, signal.SIGINT, weight=1.0)

    assert run(main) == signal.SIG_IGN


def test_an_initializer_sees_the_context_variables_of_who_entered_the_pool():  # S12
    variable = contextvars.ContextVar("variable")

    def keep():
        domains.domain_state.seen = variable.get()

    def seen():
        return domains.domain_state.seen

    async def main(env):
        variable.set("who entered")
        async with ExecutorPool(env.domain_mgr, min_domains=0, max_domains=1, initializer=keep) as pool:
            variable.set("who submitted what a domain was started for")
            return await pool.submit(seen, weight=1.0)

    assert run(main) == "who entered"


def test_the_state_of_a_domain_lives_as_long_as_the_domain():
    def put(value):
        domains.domain_state.value = value

    def get():
        return domains.domain_state.value

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, initializer=put, initargs=[1]) as pool:
            before = await pool.submit(get, weight=1.0)
            await pool.submit(put, 2, weight=1.0)
            return before, await pool.submit(get, weight=1.0)

    assert run(main) == (1, 2)


def test_a_function_that_travels_by_value_finds_the_state_of_its_domain(link):
    from domains import domain_state

    def keep(value):
        domain_state.kept = value

    def kept():
        return domain_state.kept

    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            await domain.call(keep, 5)
            assert await domain.call(kept) == 5

    domains.run(main, link=link)


def test_a_pool_is_ready_before_any_job(link):
    async def main(env):
        async with ExecutorPool(
            env.domain_mgr, domain_count=2, initializer=open_resource_slowly, initargs=("x",)
        ) as pool:
            await pool.ready()
            pids = {domain.pid for domain in pool.stats().domains}
            return None not in pids and len(pids) == 2

    assert run(main, link)


def test_a_domain_is_replaced_after_so_many_jobs(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, max_jobs=10) as pool, Switch() as sw:
            promises = [pool.submit_fork(sw, read_resource, weight=1.0) for _ in range(35)]
            return [(await promise)[0] for promise in promises]

    pids = run(main, link)
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [10, 10, 10, 5]


def test_no_job_is_dropped_while_domains_are_recycled(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2, max_jobs=7) as pool, Switch() as sw:
            promises = [pool.submit_fork(sw, abs, -n, weight=0.5) for n in range(300)]
            return [await promise for promise in promises]

    assert run(main, link) == list(range(300))


_ballast: list[bytearray] = []


def grow(size_bytes):
    _ballast.append(bytearray(size_bytes))
    return os.getpid()


def test_a_domain_is_replaced_when_it_holds_too_much_memory(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, max_memory=300 << 20) as pool:
            pids = []
            for _ in range(8):
                pids.append(await pool.submit(grow, 100 << 20, weight=1.0))
                await asyncio.sleep(0.02)  # memory is looked at no more often than that
            return pids

    pids = run(main, link)
    assert len(set(pids)) > 1
    assert max(pids.count(pid) for pid in pids) <= 4


@pytest.mark.parametrize("initializer", [None, read_resource])
def test_a_domain_that_holds_too_much_memory_before_any_job_still_has_one(initializer):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, initializer=initializer, max_memory=1) as pool:
            await pool.ready()
            return [(await pool.submit(domains.current, weight=1.0, timeout=5.0)).id for _ in range(2)]

    assert run(main) == [1, 2]


def test_memory_that_cannot_be_looked_at_for_want_of_a_descriptor_is_not_too_much():
    told = []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        MemoryWatch(1, told.append).look()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert told == []
    MemoryWatch(1, told.append).look()
    assert len(told) == 1


def wait_for_file(path):
    while not os.path.exists(path):
        time.sleep(0.001)
    return os.getpid()


def test_a_pool_grows_while_jobs_wait_and_shrinks_when_idle(tmp_path):
    finish = tmp_path / "finish"

    async def main(env):
        async with ExecutorPool(env.domain_mgr, min_domains=1, max_domains=3, idle=0.05) as pool:
            sizes = [len(pool.stats().domains)]
            async with Switch() as sw:
                promises = [pool.submit_fork(sw, wait_for_file, finish, weight=1.0) for _ in range(5)]
                while pool.stats().running < 3:
                    await asyncio.sleep(0.001)
                sizes.append(len(pool.stats().domains))
                finish.touch()
                pids = {await promise for promise in promises}
            while len(pool.stats().domains) > 1:
                await asyncio.sleep(0.01)
            assert await pool.submit(abs, -3, weight=1.0) == 3
            return sizes, len(pids)

    assert run(main) == ([1, 3], 3)


def _count_calls(monkeypatch, owner, name):
    calls = []
    call = getattr(owner, name)

    def count_and_call(self):
        calls.append(name)
        call(self)

    monkeypatch.setattr(owner, name, count_and_call)
    return calls


async def _begin_and_wait_for(began, finish):
    began.resolve(None)
    await finish


def test_a_pool_that_keeps_nobody_idle_does_not_look_for_them_all_the_time(monkeypatch):
    calls = _count_calls(monkeypatch, Members, "_shrink")

    async def main(env):
        (began, begin), (finish, resolver) = (domains.Promise.create() for _ in range(2))
        async with ExecutorPool(env.domain_mgr, min_domains=0, max_domains=1, idle=0.0) as pool, Switch() as switch:
            pool.submit_fork(switch, _begin_and_wait_for, begin, finish, weight=1.0)
            await began
            while not calls:
                await asyncio.sleep(0)
            calls.clear()
            for _ in range(2000):
                await asyncio.sleep(0)
            resolver.resolve(None)
        assert len(calls) < 500

    run(main)


def _begin_and_wait_for_file(begin, finish):
    begin.touch()
    wait_for_file(finish)


def test_a_pool_that_has_no_patience_does_not_look_after_what_it_cancels_all_the_time(tmp_path, monkeypatch):
    calls = _count_calls(monkeypatch, Cancelling, "look")
    begin, finish = tmp_path / "begin", tmp_path / "finish"

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, grace=0.0) as pool, Switch() as sw:

            async def cancel_one_behind():
                async with Switch() as switch:
                    pool.submit_fork(switch, abs, -1, weight=0.0)  # is sent at once
                    while pool.stats().running < 2:
                        await asyncio.sleep(0)
                    switch.cancel()

            running = pool.submit_fork(sw, _begin_and_wait_for_file, begin, finish, weight=1.0)
            while not begin.exists():
                await asyncio.sleep(0.001)
            sw.fork(cancel_one_behind)
            while not calls:
                await asyncio.sleep(0)
            calls.clear()
            for _ in range(2000):
                await asyncio.sleep(0)
            finish.touch()
            await running
        assert len(calls) < 500

    run(main)


def test_a_pool_of_no_domains_starts_one_when_it_is_needed(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, min_domains=0, max_domains=2, idle=0.05) as pool:
            assert pool.stats().domains == ()
            assert await pool.submit(abs, -3, weight=1.0) == 3
            while pool.stats().domains:
                await asyncio.sleep(0.01)
            return await pool.submit(abs, -4, weight=1.0)

    assert run(main, link) == 4


def test_drain_waits_for_what_was_submitted_and_refuses_the_rest(link):  # S67
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            promises = [pool.submit_fork(sw, abs, -n, weight=1.0) for n in range(50)]
            sw.fork(pool.drain)
            await domains.fiber.yield_now()
            with pytest.raises(Closed, match="drained"):
                await pool.submit(abs, 1, weight=1.0)
            return [await promise for promise in promises]

    assert run(main, link) == list(range(50))


async def submit_after(pool, path):
    while not os.path.exists(path):
        await asyncio.sleep(0.001)
    return await pool.submit(abs, -7, weight=1.0)


def test_jobs_may_submit_jobs_while_the_pool_is_drained(link, tmp_path):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            promise = pool.submit_fork(sw, submit_after, pool, tmp_path / "go", weight=1.0)
            sw.fork(pool.drain)
            await domains.fiber.yield_now()
            (tmp_path / "go").touch()
            return await promise

    assert run(main, link) == 7


def test_close_cancels_everything_and_each_caller_gets_an_answer(link):  # S67
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            promises = [pool.submit_fork(sw, time.sleep, 3600, weight=1.0) for _ in range(5)]
            await domains.fiber.yield_now()
            await pool.close()
            for promise in promises:
                assert promise.is_resolved
                with pytest.raises(domains.Cancelled) as caught:
                    await promise
                assert isinstance(caught.value.reason, Closed)
            with pytest.raises(Closed):
                await pool.submit(abs, 1, weight=1.0)
            return pool._dispatch.stats().domains

    assert run(main, link) == ()


def test_whoever_is_refused_by_a_pool_gets_an_error_of_his_own():
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, initializer=os._exit, initargs=[3]) as pool:
            jobs = [pool.submit(abs, 1, weight=1.0) for _ in range(2)]
            errors = await asyncio.gather(*jobs, return_exceptions=True)
            for wait in pool.ready, pool.ready, *[partial(pool.submit, abs, 1, weight=1.0)] * 2:
                with pytest.raises(DomainUnavailable) as caught:
                    await wait()
                errors.append(caught.value)
        assert {str(error.__cause__) for error in errors} == {str(errors[0].__cause__)}
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            pass
        for _ in range(2):
            with pytest.raises(Closed) as refused:
                await pool.submit(abs, 1, weight=1.0)
            errors.append(refused.value)
        return len(errors), len(set(errors))

    assert run(main) == (8, 8)


def test_a_copy_of_an_error_has_notes_of_its_own():
    error = Closed("the pool is closed")
    error.add_note("seen by all")
    copy_of(error).add_note("seen by one")
    assert error.__notes__ == ["seen by all"]
    assert not copy_of(error).__suppress_context__


def test_a_pool_that_is_tied_to_a_switch_ends_with_it(link):
    async def main(env):
        async with Switch() as sw:
            pool = await sw.enter(ExecutorPool(env.domain_mgr, domain_count=1))
            result = await pool.submit(abs, -5, weight=1.0)
        with pytest.raises(Closed):
            await pool.submit(abs, 1, weight=1.0)
        return result

    assert run(main, link) == 5


def test_a_switch_that_fails_cancels_the_jobs_of_its_pool(tmp_path):
    class Stop(Exception):
        pass

    async def main(env):
        async with Switch() as outer:
            with pytest.raises(Stop):
                async with Switch() as sw:
                    pool = await sw.enter(ExecutorPool(env.domain_mgr, domain_count=1))
                    promise = pool.submit_fork(outer, wait_for_file, tmp_path / "never", weight=1.0)
                    raise Stop
            with pytest.raises(domains.Cancelled):
                await promise

    run(main)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"domain_count": 2, "max_domains": 3}, ValueError),
        ({"min_domains": 3, "max_domains": 2}, ValueError),
        ({"max_domains": 0}, ValueError),
        ({"min_domains": -1}, ValueError),
        ({"domain_count": 10**20}, ValueError),
        ({"max_domains": 10**20}, ValueError),
        ({"domain_count": True}, TypeError),
        ({"max_jobs": 0}, ValueError),
        ({"max_memory": 1.5}, TypeError),
        ({"max_memory": 1 << 63}, ValueError),
        ({"idle": -1.0}, ValueError),
        ({"grace": "1"}, TypeError),
        ({"initializer": 3}, TypeError),
    ],
)
def test_options_are_checked_when_the_pool_is_made(options, error):
    async def main(env):
        with pytest.raises(error):
            ExecutorPool(env.domain_mgr, **options)

    run(main)


def test_an_initializer_that_cannot_travel_is_refused_when_the_pool_is_entered():
    lock = threading.Lock()

    def initializer():
        return lock

    async def main(env):
        with pytest.raises(domains.NotPicklable, match="lock"):
            async with ExecutorPool(env.domain_mgr, domain_count=1, initializer=initializer):
                pass

    run(main)


def test_what_cannot_travel_any_more_when_a_domain_is_replaced_fails_the_jobs():
    config = {}

    def initializer(config):
        pass

    async def main(env):
        pool = ExecutorPool(env.domain_mgr, domain_count=1, initializer=initializer, initargs=(config,))
        async with pool:
            await pool.ready()
            config["lock"] = threading.Lock()
            with pytest.raises(domains.DomainDied):
                await pool.submit(os._exit, 3, weight=1.0)
            with pytest.raises(domains.NotPicklable):
                await pool.submit(abs, -1, weight=1.0, timeout=10.0)

    run(main)


def test_a_long_job_of_a_recycled_domain_ends_there(tmp_path):
    begin, finish = tmp_path / "begin", tmp_path / "finish"

    async def long():
        begin.touch()
        while not finish.exists():
            await asyncio.sleep(0.001)
        return os.getpid()

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, max_jobs=2) as pool, Switch() as sw:
            promise = pool.submit_fork(sw, long, weight=0.5)
            before = await pool.submit(os.getpid, weight=0.1)
            after = pool.submit_fork(sw, os.getpid, weight=0.1)
            finish.touch()
            return before == await promise, before == await after

    assert run(main) == (True, False)


def test_a_light_job_of_a_recycled_domain_keeps_no_other_waiting(tmp_path):
    finish = tmp_path / "finish"

    async def long():
        while not finish.exists():
            await asyncio.sleep(0.001)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, max_jobs=2) as pool, Switch() as sw:
            promise = pool.submit_fork(sw, long, weight=0.1)
            pids = [await pool.submit(os.getpid, weight=0.1) for _ in range(5)]
            assert not promise.is_resolved
            finish.touch()
            return len(set(pids))

    assert run(main) == 3


def test_recycling_runs_no_more_full_jobs_at_a_time(tmp_path):
    def alone():
        (tmp_path / "running").mkdir()  # FileExistsError if another one runs
        time.sleep(0.01)
        (tmp_path / "running").rmdir()

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, max_jobs=1) as pool, Switch() as sw:
            for _ in range(5):
                pool.submit_fork(sw, alone, weight=1.0)

    run(main)


def test_recycling_starts_no_domain_for_each_of_many_light_jobs(tmp_path):
    finish = tmp_path / "finish"

    async def long():
        while not finish.exists():
            await asyncio.sleep(0.001)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, max_jobs=1) as pool, Switch() as sw:
            for _ in range(6):
                pool.submit_fork(sw, long, weight=0.01)
            while pool.stats().running < 2:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
            counts = len(pool.stats().domains), pool.stats().queued
            finish.touch()
            return counts

    assert run(main) == (2, 4)


@pytest.mark.parametrize("max_jobs", [1, 3])
def test_nested_jobs_finish_while_domains_are_recycled(link, max_jobs):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, max_jobs=max_jobs) as pool:
            return await pool.submit(_descend, pool, 4, weight=1.0)

    assert run(main, link) == 4


async def _descend(pool, depth):
    return depth and 1 + await pool.submit(_descend, pool, depth - 1, weight=1.0)


async def _unwind_slowly(began, unwinds, go_on, path):
    try:
        began.resolve(None)
        await domains.fiber.await_cancel()
    finally:
        with domains.protect():
            unwinds.resolve(None)
            await go_on
            path.touch()


def test_a_job_that_unwinds_may_take_as_long_as_the_grace_when_its_pool_is_abandoned(link, tmp_path, monkeypatch):
    monkeypatch.setattr("domains.pool.dispatch.CANCELLING_SECONDS", 0.0)

    async def main(env):
        (began, begin), (unwinds, unwind), (go_on, resolver) = (domains.Promise.create() for _ in range(3))

        async def let_go_on():
            await unwinds
            resolver.resolve(None)

        async with Switch() as switch:
            switch.fork(let_go_on)
            with pytest.raises(LookupError):
                async with ExecutorPool(env.domain_mgr, domain_count=1, grace=60.0) as pool:
                    pool.submit_fork(switch, _unwind_slowly, begin, unwind, go_on, tmp_path / "done", weight=1.0)
                    await began
                    raise LookupError
            assert (tmp_path / "done").exists()

    domains.run(main, link=link)


def _wait_for_ever(begin, ended):
    try:
        begin.touch()
        time.sleep(3600)
    except BaseException as error:
        ended.write_text(type(error).__name__)
        raise


async def _wait_for_ever_async(begin, ended):
    try:
        begin.touch()
        await asyncio.sleep(3600)
    except BaseException as error:
        ended.write_text(type(error).__name__)
        raise


@pytest.mark.parametrize("initializer", [_wait_for_ever, _wait_for_ever_async])
def test_a_pool_that_is_abandoned_cancels_initializers(link, initializer, tmp_path):
    begin, ended = tmp_path / "begin", tmp_path / "ended"

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, initializer=initializer, initargs=(begin, ended)):
            while not begin.exists():
                await asyncio.sleep(0.001)
            raise LookupError

    with pytest.raises(LookupError):
        run(main, link)
    assert ended.read_text() in ("Cancelled", "CancelledError")


def test_a_pool_that_closes_lets_initializers_end(tmp_path):
    begin, ended = tmp_path / "begin", tmp_path / "ended"

    def initializer():
        begin.touch()
        time.sleep(0.05)
        ended.touch()

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, initializer=initializer):
            while not begin.exists():
                await asyncio.sleep(0.001)

    run(main)
    assert ended.exists()


def _die_where_told(path):
    if os.path.exists(path):
        os._exit(5)


async def _have_others_die(path, began, promise):
    path.touch()
    began.resolve(None)
    return await promise


def test_a_pool_whose_last_domain_is_a_retired_one_fails_its_jobs_if_no_other_can_start(link, tmp_path):
    path = tmp_path / "die"

    async def main(env):
        began, start = domains.Promise.create()
        promise, resolver = domains.Promise.create()
        options = {"max_jobs": 1, "initializer": _die_where_told, "initargs": (path,)}
        async with ExecutorPool(env.domain_mgr, domain_count=1, **options) as pool, Switch() as switch:
            last = pool.submit_fork(switch, _have_others_die, path, start, promise, weight=0.1)
            await began
            waiting = pool.submit_fork(switch, os.getpid, weight=0.1)
            with pytest.raises(DomainUnavailable, match="cannot start"):
                await waiting
            assert not last.is_resolved
            resolver.resolve("ended")
            assert await last == "ended"

    domains.run(main, link=link)


async def _have_others_die_and_need_one(path, pool):
    path.touch()
    return await pool.submit(os.getpid, weight=0.1)


def test_a_job_of_a_retired_domain_that_waits_for_another_fails_if_no_other_domain_can_start(link, tmp_path):
    path = tmp_path / "die"

    async def main(env):
        options = {"max_jobs": 1, "initializer": _die_where_told, "initargs": (path,)}
        async with ExecutorPool(env.domain_mgr, domain_count=1, **options) as pool:
            with pytest.raises(DomainUnavailable, match="cannot start"):
                await pool.submit(_have_others_die_and_need_one, path, pool, weight=1.0)

    domains.run(main, link=link)


def _process_of_its_own(pool):
    return os.getpid()


async def _process_of_another(pool):
    return await pool.submit(os.getpid, weight=1.0)


@pytest.mark.parametrize("job", [_process_of_its_own, _process_of_another])
def test_a_pool_whose_last_domain_is_recycled_after_others_could_not_start_fails_its_jobs(link, job, tmp_path):
    path = tmp_path / "die"

    async def main(env):
        began, start = domains.Promise.create()
        promise, resolver = domains.Promise.create()
        options = {"max_jobs": 4, "initializer": _die_where_told, "initargs": (path,)}
        async with ExecutorPool(env.domain_mgr, min_domains=1, max_domains=2, **options) as pool, Switch() as switch:
            first = pool.submit_fork(switch, _have_others_die, path, start, promise, weight=1.0)
            await began
            members = pool._dispatch._members
            async with Switch() as others:
                for _ in range(2):
                    pool.submit_fork(others, os.getpid, weight=1.0)
                while members._false_starts < 30:
                    await asyncio.sleep(0.01)
                others.cancel()
            while members._planned or len(list(members)) > 1:
                await asyncio.sleep(0.01)
            assert members._failure is None
            resolver.resolve("ended")
            assert await first == "ended"
            with pytest.raises(DomainUnavailable, match="cannot start"):
                for _ in range(4):
                    await pool.submit(job, pool, weight=1.0)

    domains.run(main, link=link)
