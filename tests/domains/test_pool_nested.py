"""Jobs that submit jobs: to the pool that they run in, to any depth, from any domain."""

import asyncio
import os
import signal
import threading

import pytest

import domains
from domains import ExecutorPool, Switch, fiber


def run(main, link="socketpair"):
    return domains.run(main, link=link)


async def fib(pool, n):
    if n < 2:
        return n
    return sum(
        await fiber.all(
            [lambda: pool.submit(fib, pool, n - 1, weight=1.0), lambda: pool.submit(fib, pool, n - 2, weight=1.0)]
        )
    )


async def fib_by_gather(pool, n):
    if n < 2:
        return n
    return sum(await asyncio.gather(*(pool.submit(fib_by_gather, pool, n - i, weight=1.0) for i in (1, 2))))


async def fib_by_fork(pool, n):
    if n < 2:
        return n
    async with Switch() as sw:
        promises = [pool.submit_fork(sw, fib_by_fork, pool, n - i, weight=1.0) for i in (1, 2)]
        return sum([await promise for promise in promises])


@pytest.mark.parametrize("f", [fib, fib_by_gather, fib_by_fork])
@pytest.mark.parametrize("count", [1, 2])
def test_recursive_fib_finishes_on_full_domains(link, f, count):  # S68
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=count) as pool:
            return await pool.submit(f, pool, 10, weight=1.0)

    assert run(main, link) == 55


async def merge_sort(pool, xs):
    if len(xs) < 8:
        return sorted(xs)
    middle = len(xs) // 2
    left, right = await fiber.pair(
        lambda: pool.submit(merge_sort, pool, xs[:middle], weight=1.0),
        lambda: pool.submit(merge_sort, pool, xs[middle:], weight=1.0),
    )
    merged = []
    while left and right:
        merged.append((left if left[0] <= right[0] else right).pop(0))
    return merged + left + right


def test_a_merge_sort_finishes_on_one_domain():
    xs = [(i * 7919) % 1009 for i in range(400)]

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await pool.submit(merge_sort, pool, xs, weight=1.0)

    assert run(main) == sorted(xs)


async def count_files(pool, path):
    entries = list(os.scandir(path))
    files = sum(entry.is_file() for entry in entries)
    async with Switch() as sw:
        promises = [
            pool.submit_fork(sw, count_files, pool, entry.path, weight=1.0) for entry in entries if entry.is_dir()
        ]
        return files + sum([await promise for promise in promises])


def test_a_directory_walk_finishes_on_one_domain(tmp_path):
    for a in range(3):
        for b in range(3):
            (tmp_path / f"{a}" / f"{b}").mkdir(parents=True)
            for c in range(a + b):
                (tmp_path / f"{a}" / f"{b}" / f"{c}").touch()

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await pool.submit(count_files, pool, str(tmp_path), weight=1.0)

    assert run(main) == 18


async def map_inside(pool):
    return [r async for r in pool.map(abs, range(-50, 0), weight=1.0)]


def test_a_job_maps_over_its_own_pool(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await pool.submit(map_inside, pool, weight=1.0)

    assert run(main, link) == list(range(50, 0, -1))


async def submit_failing(pool):
    try:
        await pool.submit(int, "x", weight=1.0)
    except ValueError as error:
        return str(error)


def test_a_nested_jobs_failure_is_its_submitters(link):  # S66
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await pool.submit(submit_failing, pool, weight=1.0)

    assert "invalid literal" in run(main, link)


async def submit_from_elsewhere(pool):
    return domains.current().name, await pool.submit(domains.current, weight=1.0)


def test_a_domain_outside_of_the_pool_submits_to_it(link):  # S68
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await env.domain_mgr.run(submit_from_elsewhere, pool), pool.stats().domains[0].name

    (outside, inside), name = run(main, link)
    assert inside.name == name
    assert outside != name


async def pass_on(pool, depth):
    if depth:
        return await pool.submit(pass_on, pool, depth - 1, weight=1.0)
    return "bottom"


def test_a_handle_comes_home_as_the_pool_itself(link):
    async def identity(pool):
        return pool

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await pool.submit(identity, pool, weight=1.0) is pool, await pool.submit(
                pass_on, pool, 30, weight=1.0
            )

    assert run(main, link) == (True, "bottom")


def submit_from_plain(pool):
    with pytest.raises(RuntimeError, match="make the submitting job `async`"):
        asyncio.run(pool.submit(abs, -1, weight=1.0))
    return "refused"


def test_a_plain_job_cannot_submit(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await pool.submit(submit_from_plain, pool, weight=1.0)

    assert run(main, link) == "refused"


async def wait_and_tell(resolver, ended):
    resolver.resolve(domains.current())
    try:
        await asyncio.Event().wait()
    finally:
        ended.resolve("ended")


async def wait_for_nested(pool, resolver, ended):
    await pool.submit(wait_and_tell, resolver, ended, weight=1.0)


def test_cancelling_a_job_cancels_the_jobs_it_waits_for(link):
    async def main(env):
        begun, resolver = domains.Promise.create()
        ended, end = domains.Promise.create()
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            async with Switch() as sw:
                pool.submit_fork(sw, wait_for_nested, pool, resolver, end, weight=1.0)
                await begun
                sw.cancel()
            result = await ended
            return result, pool.stats().running

    assert run(main, link) == ("ended", 0)


def test_the_death_of_a_submitter_cancels_what_it_submitted(link):
    async def main(env):
        begun, resolver = domains.Promise.create()
        ended, end = domains.Promise.create()
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            async with env.domain_mgr.spawn() as domain, Switch() as sw:
                promise = sw.fork_promise(domain.call, wait_for_nested, pool, resolver, end)
                await begun
                os.kill(domain.pid, signal.SIGKILL)
                with pytest.raises(domains.DomainDied):
                    await promise
            return await ended

    assert run(main, link) == "ended"


async def have_a_pool(manager, resolver):
    async with ExecutorPool(manager, domain_count=1) as pool:
        resolver.resolve(pool)
        await domains.fiber.await_cancel()


def test_a_job_that_was_cancelled_before_the_home_of_its_pool_died_was_cancelled(link):
    async def main(env):
        opened, open_it = domains.Promise.create()
        async with env.domain_mgr.spawn() as home, Switch() as others:
            having = others.fork_promise(home.call, have_a_pool, env.domain_mgr, open_it)
            pool = await opened
            async with Switch() as switch:
                job = pool.submit_fork(switch, asyncio.sleep, 3600.0, weight=1.0)
                os.kill(home.pid, signal.SIGSTOP)  # it does not hear of that any more
                others.fork(os.kill, home.pid, signal.SIGKILL)
                switch.cancel()
            with pytest.raises(domains.Cancelled):
                await job
            with pytest.raises(domains.DomainDied):
                await having
        return len(pool._remote._reasons)

    assert run(main, link) == 0


async def submit_until_closed(pool, resolver):
    resolver.resolve(None)
    try:
        while True:
            await pool.submit(asyncio.sleep, 0, weight=0.1)
    except domains.Closed as error:
        return str(error)


def test_a_submit_to_a_pool_that_is_closed_at_home_raises_closed(link):  # S67
    async def main(env):
        begun, resolver = domains.Promise.create()
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
                promise = sw.fork_promise(domain.call, submit_until_closed, pool, resolver)
                await begun
            return await promise

    assert "closed" in run(main, link)


async def submit_to_unopened(pool):
    with pytest.raises(domains.Closed, match="not open yet"):
        await pool.submit(abs, -1, weight=1.0)
    return "refused"


def test_a_submit_to_a_pool_that_is_not_entered_at_home_yet_raises_closed(link):
    async def main(env):
        return await env.domain_mgr.run(submit_to_unopened, ExecutorPool(env.domain_mgr, domain_count=1))

    assert run(main, link) == "refused"


async def submit_what_cannot_be_retried(pool):
    class Unpicklable(Exception):
        lock = threading.Lock()

    with pytest.raises(domains.NotPicklable):
        await pool.submit(abs, -1, weight=1.0, retries=1, retry_on=Unpicklable)
    return await pool.submit(abs, -1, weight=1.0)


def test_a_job_that_could_not_be_submitted_is_waited_for_by_nobody():
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            lent = []
            member = next(iter(pool._dispatch._members))
            member.handle._when_lent = lambda job, is_lent: lent.append(is_lent)
            assert await pool.submit(submit_what_cannot_be_retried, pool, weight=0.5) == 1
            return lent

    assert run(main) == [True, False]  # once, for the one that was submitted


def test_a_lent_weight_is_accounted_for():
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            await pool.submit(fib, pool, 8, weight=0.5)
            stats = pool.stats()
            return stats.running, stats.queued, stats.weight, [domain.weight for domain in stats.domains]

    assert run(main) == (0, 0, 0.0, [0.0, 0.0])


def test_what_only_the_home_of_a_pool_can_do_says_so(link):
    async def try_all(pool):
        for attempt in (pool.stats, lambda: pool.watch(print)):
            with pytest.raises(RuntimeError, match=r"home|entered"):
                attempt()
        for attempt in (pool.ready, pool.drain, pool.close):
            with pytest.raises(RuntimeError, match="entered"):
                await attempt()
        return await pool.submit(abs, -1, weight=0.1)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await pool.submit(try_all, pool, weight=0.1)

    assert domains.run(main, link=link) == 1
